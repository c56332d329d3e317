"""Prompts of the benchmark, by category. None of them is in the built-in family's training text."""

from __future__ import annotations

PROMPTS: dict[str, tuple[str, ...]] = {
    "command": (
        "How can I unpack a tarball into another directory?",
        "I need the ten biggest files below my home folder, which command?",
        "Which command shows how much space is left on my disks?",
        "Please tell me how to look for the word error in every log file.",
        "My git commit message has a typo. How do I change it?",
        "What do I type to copy a folder to a server over ssh?",
        "How would I see which process listens on port 8080?",
        "Show me how to make a script executable.",
    ),
    "app": (
        "Why is there a number with a times sign below your answer?",
        "In one or two sentences, what is a draft model here?",
        "Can my colleague use this chat from her own computer?",
        "Where on my disk do our conversations end up?",
    ),
    "talk": (
        "Hello! I just came back from a long walk by the river.",
        "I am thinking about learning to play the guitar, any thoughts?",
        "My sister adopted a kitten yesterday and it is adorable.",
        "What kind of food do you like best?",
    ),
    "other": (
        "What is 17 plus 25?",
        "Three kilometers, how many meters is that?",
        "Count: one, two, three, four, five, one, two, three, four,",
        "Say these words again: red green blue red green blue red green",
    ),
}
"""Category -> prompts; twenty in all."""
