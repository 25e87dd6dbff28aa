"""mkdocs: the command reference is written from the commands themselves whenever the site is built."""


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Put the reference where the page says `[[commands]]`."""
    return markdown.replace("[[commands]]", command_reference()) if page.file.src_uri == "commands.md" else markdown


def command_reference() -> str:
    """A section for each command with its usage, explanation, arguments and options."""
    import typer

    from vivavoce.cli import COMMANDS, app, load_command

    root = typer.main.get_group(app)
    parts = []
    with root.make_context("vivavoce", [], resilient_parsing=True) as top:
        for name in COMMANDS:
            parts += section(load_command(name), name, top, 2)
    return "\n".join(parts)


def section(command, name: str, parent, depth: int) -> list[str]:
    """The Markdown of one command; a group's commands follow it."""
    with command.make_context(name, [], parent=parent, resilient_parsing=True) as context:
        usage = " ".join(command.collect_usage_pieces(context))
        lines = [f"{'#' * depth} {context.command_path.removeprefix('vivavoce ')}", ""]
        lines += ["```text", f"{context.command_path} {usage}", "```", ""]
        lines += [_plain(command.help or ""), ""]
        rows = [record for parameter in command.get_params(context) if (record := parameter.get_help_record(context))]
        if rows:
            lines += [
                "| argument or option | what it says |",
                "|---|---|",
                *(f"| `{_cell(left)}` | {_cell(right)} |" for left, right in rows),
                "",
            ]
        for inner, child in sorted(getattr(command, "commands", {}).items()):
            lines += section(child, inner, context, depth + 1)
    return lines


def _plain(text: str) -> str:
    """Help text with its paragraphs, without indentation."""
    return "\n\n".join(" ".join(part.split()) for part in text.replace("\b", "").split("\n\n"))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
