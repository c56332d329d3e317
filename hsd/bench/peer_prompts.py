"""Prompts of four kinds that people ask real models: new code, an edit of given code, chat, JSON. Thirteen of each."""

from __future__ import annotations

_SHOP = """class Basket:
    def __init__(self):
        self.items = []

    def add(self, name, price, count=1):
        self.items.append({"name": name, "price": price, "count": count})

    def remove(self, name):
        self.items = [item for item in self.items if item["name"] != name]

    def total(self):
        result = 0
        for item in self.items:
            result += item["price"] * item["count"]
        return result
"""

_LOGS = """import sys

def read_lines(path):
    with open(path) as file:
        return [line.rstrip("\\n") for line in file]

def count_levels(lines):
    counts = {}
    for line in lines:
        level = line.split(" ")[0]
        if level in counts:
            counts[level] += 1
        else:
            counts[level] = 1
    return counts

if __name__ == "__main__":
    lines = read_lines(sys.argv[1])
    for level, count in count_levels(lines).items():
        print(level, count)
"""

_TREE = """class Node:
    def __init__(self, key, value):
        self.key = key
        self.value = value
        self.left = None
        self.right = None

def insert(root, key, value):
    if root is None:
        return Node(key, value)
    if key < root.key:
        root.left = insert(root.left, key, value)
    elif key > root.key:
        root.right = insert(root.right, key, value)
    else:
        root.value = value
    return root

def find(root, key):
    while root is not None and root.key != key:
        root = root.left if key < root.key else root.right
    return None if root is None else root.value
"""

_TIMER = """function startTimer(seconds, onTick, onDone) {
  let left = seconds;
  const id = setInterval(function () {
    left = left - 1;
    onTick(left);
    if (left <= 0) {
      clearInterval(id);
      onDone();
    }
  }, 1000);
  return id;
}

function formatTime(seconds) {
  const minutes = Math.floor(seconds / 60);
  const rest = seconds % 60;
  return minutes + ":" + (rest < 10 ? "0" + rest : rest);
}
"""


def _edit(code: str, wish: str) -> str:
    return f"Here is my code:\n\n```\n{code}```\n\n{wish} Give me the whole code again."


KINDS: dict[str, tuple[str, ...]] = {
    "new code": (
        "Write a Python function that returns the longest word of a text. Words are separated by blanks.",
        "Write a Python class for a stack with push, pop, peek and a length. Popping an empty stack raises IndexError.",
        "Write a Python function that reads a CSV file and returns the average of a column by its name.",
        "Write a function in JavaScript that checks whether two strings are anagrams of each other.",
        "Write a bash script that renames all .jpeg files in a folder to .jpg and prints how many it renamed.",
        "Write a Python function that merges two sorted lists into one sorted list without using sort.",
        "Write an SQL query that shows the five customers with the highest sum of orders, with their names.",
        "Write a Python generator that yields the prime numbers below n with a sieve.",
        "Write a C function that reverses a string in place.",
        "Write a Python decorator that prints how long a function took.",
        "Write a Python function that converts a Roman numeral to an integer.",
        "Write a Python program that asks for a number and prints its multiplication table.",
        "Write a Rust function that counts how often each character occurs in a string.",
    ),
    "edit": (
        _edit(_SHOP, "Add type hints to every method."),
        _edit(_LOGS, "Use collections.Counter in count_levels."),
        _edit(_TREE, "Add a docstring to the class and to both functions."),
        _edit(_TIMER, "Rename startTimer to runTimer and use const and arrow functions."),
        _edit(_SHOP, "Rename the class to Cart and make total use sum with a generator."),
        _edit(_LOGS, "Print the levels in alphabetical order and skip empty lines."),
        _edit(_TREE, "Add a function height(root) that returns the height of the tree."),
        _edit(_TIMER, "Let formatTime show hours too when there are any."),
        _edit(_SHOP, "Raise a ValueError in add if the price is negative."),
        _edit(_LOGS, "Read from standard input when no path is given."),
        _edit(_TREE, "Rename key to name everywhere."),
        _edit(_TIMER, "Convert it to TypeScript with types for all parameters."),
        _edit(_SHOP, "Add a method clear that empties the basket."),
    ),
    "chat": (
        "I have two free days in Lisbon. What would you do there, and why?",
        "Explain to a ten-year-old why the sky is blue.",
        "My tomatoes have yellow leaves at the bottom. What may be the reason, and what can I do?",
        "What are good habits for falling asleep sooner?",
        "Tell me a short story about a lighthouse keeper who finds a letter in a bottle.",
        "What is the difference between a loan with a fixed and one with a variable rate?",
        "I am nervous about a talk in front of fifty people. How should I prepare?",
        "Describe how bread is made, from the grain to the loaf.",
        "Why do cats purr?",
        "Should I learn the piano or the guitar first? I like folk songs.",
        "What happened in Europe in 1848, in a few sentences?",
        "Give me advice for keeping a small flat tidy.",
        "How do glaciers shape a valley?",
    ),
    "JSON": (
        "Give me a JSON array of five European capitals, each with name, country and population as a number.",
        'Turn this into JSON with the keys name, age, city: "Anna is 31 and lives in Graz. Ben, 45, lives in Bern."',
        "Write a JSON object for a recipe of pancakes: title, servings, ingredients with amount and unit, steps.",
        "Write a JSON schema for a book with title, authors, year and an optional list of tags.",
        "Give me a package.json for a small web server with express, a start script and a test script.",
        "Write a JSON array with the eight planets of the solar system: name, diameter_km, moons.",
        "Write a JSON object with opening hours of a library for every day of the week, with opens and closes.",
        "Give me JSON with three fictional employees: id, name, email, department, and skills as a list.",
        "Write a GeoJSON feature collection with three points in Paris, each with a name.",
        "Write a JSON configuration for a logger with console and file outputs and levels.",
        'Make JSON of this list: "milk 2 l, eggs 12, flour 1 kg, butter 250 g". Keys: item, amount, unit.',
        "Write a JSON object that describes a chess board at the start of a game, row by row.",
        "Give me a JSON array of the twelve months with number, name and days.",
    ),
}
"""Kind -> prompts."""

MEASURED = 8
"""So many prompts of each kind are measured; the rest are for what is learnt before."""
