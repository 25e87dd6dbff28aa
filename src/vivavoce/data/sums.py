"""What is said in the spoken-digit task: the words, the 110 answers, and when an answer is due."""

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUMBERS = (
    *DIGITS,
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
)
WORDS = (*NUMBERS, "plus", "is")


def answer(digits: tuple[str, ...] | list[str]) -> str:
    """The answer to one digit ("seven") or two ("three plus four is seven").

    Raises ValueError for words that are no digits, or more than two.
    """
    if len(digits) == 1:
        return DIGITS[DIGITS.index(digits[0])]
    first, second = digits
    return f"{first} plus {second} is {NUMBERS[DIGITS.index(first) + DIGITS.index(second)]}"


def all_answers() -> list[str]:
    """The 110 answers: ten digits, then the hundred sums."""
    return [answer([d]) for d in DIGITS] + [answer([a, b]) for a in DIGITS for b in DIGITS]


def is_number(text: str) -> bool:
    """Does the text contain the name of a number that this task can say?"""
    return any(word in NUMBERS for word in text.lower().split())
