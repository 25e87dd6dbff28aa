"""What a recipe may say. No torch here: reading and checking a recipe is instant."""

from vivavoce.schema.reading import read_recipe, recipe_names, resolve
from vivavoce.schema.recipe import (
    Backbone,
    Clock,
    Head,
    Input,
    Interaction,
    Phase,
    Recipe,
    Stage,
    Stream,
    Task,
)

__all__ = [
    "Backbone",
    "Clock",
    "Head",
    "Input",
    "Interaction",
    "Phase",
    "Recipe",
    "Stage",
    "Stream",
    "Task",
    "read_recipe",
    "recipe_names",
    "resolve",
]
