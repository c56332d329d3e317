"""Prompts of the planner's benchmarks: four categories, each split by lot: some to learn from, some to be judged on."""

from __future__ import annotations

import random

from hsd.bench.prompts import PROMPTS

_MORE: dict[str, tuple[str, ...]] = {
    "command": (
        "What is the command to see hidden files?",
        "How can I show the last lines of a file while it grows?",
        "I want to replace a word in a text file, how?",
        "How do I find out which shell I am using?",
        "Please show me how to kill a process by name.",
        "How do I compare two directories and see what differs?",
        "Which command tells me how much memory is free?",
        "How can I rename many files at once?",
        "What do I type to count the lines of a file?",
        "Show the ip address of this computer, please.",
        "How do I keep a command running after I log out?",
        "I want to download a whole website, which tool?",
        "How would I sort a file by its second column?",
        "Which command sets the time zone?",
        "How do I make a symbolic link to a folder?",
        "Tell me how to undo the last commit but keep my changes.",
        "How can I resize a picture on the command line?",
    ),
    "app": (
        "What does the coloured text in a reply mean?",
        "How do I make your replies faster?",
        "Is anything I type sent to the internet?",
        "Why do you use more than one model?",
        "Can I go back to an earlier conversation?",
        "Where can I see which plan you are using?",
        "How do I stop a reply that is too long?",
        "What happens when I press regenerate?",
        "Can I choose the models myself?",
        "Why was the first answer slower than the second?",
        "How do I export a conversation?",
        "What is a target model?",
        "Do you need a graphics card?",
        "How can I change the temperature?",
        "What does acceptance mean here?",
        "Which languages do you speak?",
        "How much memory do you need?",
        "Can two people use you at the same time?",
        "What is the lookup level for?",
        "How do I search in my old chats?",
        "Why did the plan change just now?",
    ),
    "talk": (
        "I slept badly last night.",
        "It has been raining here for a week.",
        "Do you ever get bored?",
        "I finally finished the book I was reading.",
        "We are having friends over for dinner tonight.",
        "My train was late again this morning.",
        "I baked bread for the first time today.",
        "Tell me something nice.",
        "I am a bit nervous about my interview tomorrow.",
        "The leaves are turning yellow already.",
        "My grandmother turned ninety last week.",
        "I cannot decide what to cook.",
        "What a long day that was.",
        "Our neighbours have a new dog and it barks all night.",
        "I am learning Italian.",
        "Have you got any plans for the weekend?",
        "I lost my umbrella somewhere in town.",
        "My son started school today.",
        "I like to swim in the lake before work.",
        "Which season do you like most?",
        "I painted the kitchen green.",
    ),
    "other": (
        "What is 9 times 12?",
        "Count backwards from ten to one.",
        "Repeat after me: one fish two fish one fish two fish",
        "How many minutes are there in three hours?",
        "Write the letters a b c a b c a b c and go on.",
        "What is 144 divided by 12?",
        "Say the days of the week twice.",
        "How many centimeters are in two and a half meters?",
        "Write one, one, two, two, three, three, four, four, and go on.",
        "Is 91 a prime number?",
        "List the first ten even numbers.",
        "What is 250 minus 75?",
        "Name the months of the year.",
        "Copy this: left right left right left right",
        "How many days has February?",
        "Add 3 and 4, then add 5.",
        "Spell the word necessary.",
        "Which is larger, 0.5 or 0.35?",
        "Continue: 2, 4, 8, 16,",
        "What is half of 98?",
        "Write hello three times.",
    ),
}

_POOL = {category: [*PROMPTS[category], *_MORE[category]] for category in PROMPTS}
for _category, _prompts in _POOL.items():
    random.Random(f"split {_category}").shuffle(_prompts)

JUDGE = {category: tuple(prompts[:10]) for category, prompts in _POOL.items()}
"""Category -> prompts to measure on: ten each, forty in all."""

LEARN = {category: tuple(prompts[10:]) for category, prompts in _POOL.items()}
"""Category -> prompts that forecasts may be fitted on, fifteen each; none of them is measured."""
