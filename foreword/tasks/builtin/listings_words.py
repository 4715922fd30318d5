"""Hold the words of the embedded generation task: `train | validation | test`, separated by commas.

They are written for Foreword. Validation takes the words of training; its part is empty. `SAID` are the ways to say an
attribute, and `SLOTS` the rules that find each attribute in a text.
"""

from foreword.tasks.slot_rules import Slots

FIRST = """golden, quiet, old, blue, silver, little, green, red, royal, white, lucky, merry | |
    crooked, purple, noble, iron, gentle, frozen"""
LAST = """heron, lantern, anchor, mill, orchard, bridge, lion, crown, swan, compass, fountain, oak | |
    raven, barrel, lighthouse, fox, wagon, pearl"""
AREAS = "harbour, old town, station quarter, church square, docks | | mill lane, castle hill, fish quay"
HOURS = "8 am, 9 am, 10 am, noon, 2 pm | | 7 am, 11 am, 4 pm"
PRICES = {"free": "free", "cheap": "cheap", "moderate": "moderately priced", "high": "expensive"}
FEATURES = {
    "hotel": "large rooms, roof terrace, warm pool, soft beds | | sea view, hot breakfast",
    "museum": "old maps, ship models, roman coins, oil paintings | | steam engines, glass masks",
    "bakery": "apple cakes, rye bread, cinnamon rolls, cherry pies | | almond biscuits, onion tarts",
    "cinema": "silent films, big screen, late shows, leather seats | | foreign films, live piano",
    "park": "rose beds, duck pond, long lawns, stone statues | | herb maze, tall cedars",
    "gym": "climbing wall, early classes, steam bath, new machines | | boxing ring, rowing tank",
    "theatre": "puppet plays, painted ceiling, short comedies, velvet curtains | | masked dances, sword fights",
    "library": "rare books, reading nooks, map tables, story hours | | wax seals, leather globes",
}
NEW_KINDS = ("theatre", "library")  # only in test rows

# Ways to say it, with the attributes that each opening uses up besides name and kind.
SAID: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "open": [
        ("{name} is a {kind}", ()),
        ("there is a {kind} called {name}", ()),
        ("{name} is a {kind} in the {area}", ("area",)),
        ("the {kind} {name} is in the {area}", ("area",)),
        ("in the {area} there is a {kind} called {name}", ("area",)),
        ("{name} is a {cost} {kind}", ("price",)),
        ("{name} is a {cost} {kind} in the {area}", ("price", "area")),
        ("{name} is a {kind} known for its {known_for}", ("known for",)),
        ("{name} is a {kind} that opens at {opens}", ("opens",)),
    ],
    "area": [("it is in the {area}", ()), ("you find it in the {area}", ())],
    "opens": [("it opens at {opens}", ()), ("its doors open at {opens}", ())],
    "known for": [
        ("it is known for its {known_for}", ()),
        ("people come for the {known_for}", ()),
        ("visitors like its {known_for}", ()),
    ],
    "price free": [("it costs nothing", ()), ("it is free", ())],
    "price cheap": [("it is cheap", ()), ("its prices are low", ())],
    "price moderate": [("it is moderately priced", ()), ("its prices are moderate", ())],
    "price high": [("it is expensive", ()), ("its prices are high", ())],
    "children yes": [("children are welcome", ()), ("it is good for children", ())],
    "children no": [("children are not admitted", ()), ("it is not for children", ())],
}

SLOTS = Slots(
    names=frozenset({"name", "kind"}),
    phrases={
        "price": {
            "free": r"free(?: of charge)?|costs? nothing",
            "cheap": r"cheap|prices are (?:very )?low|low prices",
            "moderate": r"moderate(?:ly)?(?: priced)?|prices are moderate|moderate prices",
            "high": r"expensive|prices are (?:very )?high|high prices",
        },
        "children": {
            "no": r"children are not (?:admitted|welcome|allowed)|not (?:good )?for children|no children",
            "yes": r"children are (?:welcome|admitted|allowed)|good for children|for children|welcomes children",
        },
    },
)
