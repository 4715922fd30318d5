"""Hold phrases for the attributes of E2E (Novikova, Dusek and Rieser 2017), in the form that tasks/slots reads.

They are Foreword's own, written after reading training rows. Of two scales for one thing ("5 out of 5" and "high")
either may be said for the other, as people do. "Restaurant" is a word for any place: it realises its value and is no
error elsewhere.
"""

from foreword.tasks.slot_rules import Slots

_LOW, _AVERAGE, _HIGH = (
    r"(?:{0}) (?:customer )?(?:star )?(?:rat(?:ed|ing|ings)|reviews?)|"
    r"rat(?:ed|es|ing|ings)(?: is| of| as| it| are| by customers as)? (?:{0})|{1}".format(*words)
    for words in (
        (r"low|lowly|poor|poorly|bad|badly|not well", r"(?:1|one) (?:out of|of) (?:5|five)|(?:1|one) stars?"),
        (r"average|averagely", r"(?:3|three) (?:out of|of) (?:5|five)|(?:3|three) stars?"),
        (
            r"high|highly|good|great|excellent|well|top",
            r"(?:5|five) (?:out of|of) (?:5|five)|(?:5|five) stars?",
        ),
    )
)
_CHILDREN = r"(?:family|families|child|children|kid|kids)(?: s)?"
_FRIENDLY = r"(?:friendly|welcome|welcomed|allowed|oriented|suitable)"
_NOT = r"(?:not|isnt|non|no|arent|un|doesnt|does not)"

E2E = Slots(
    names=frozenset({"name", "near"}),
    phrases={
        "familyFriendly": {
            "no": rf"{_NOT}(?: \w+){{0,2}} {_CHILDREN}(?: and {_CHILDREN})?(?: {_FRIENDLY})?|adults?(?: only)?|"
            rf"{_CHILDREN} (?:are |is )?(?:not|unfriendly|un friendly)(?: {_FRIENDLY})?|grown ups?",
            "yes": rf"{_CHILDREN}(?: and {_CHILDREN})? (?:are |is )?{_FRIENDLY}(?: environment| atmosphere)?|"
            rf"(?:welcomes?|welcoming|friendly|suitable|good|great|perfect|ideal|fit)(?: \w+){{0,2}} {_CHILDREN}|"
            rf"for (?:the |the whole )?{_CHILDREN}",
        },
        "customer rating": {"low": _LOW, "average": _AVERAGE, "high": _HIGH},
        "priceRange": {
            "less than £20": r"(?:less than|lower than|under|below|up to) £?20(?: pounds)?|"
            r"cheap(?:ly)?(?: priced| prices?| price range)?|inexpensive|affordable|budget|"
            r"low(?:er)? (?:price|prices|priced|cost|costs|price range)|"
            r"prices? (?:is |are |range is )?(?:low|cheap)|price range (?:of |is )?(?:less than|under|cheap|low)",
            "£20-25": r"(?:between |from )?£?20(?: to| and)? £?25(?: pounds)?|"
            r"moderate(?:ly)?(?: priced| prices?| price range)?|mid (?:priced|range)|"
            r"average(?:ly)? (?:price|prices|priced|price range)|"
            r"prices? (?:range )?(?:is |are )?(?:moderate|average)",
            "more than £30": r"(?:more than|higher than|over|above) £?30(?: pounds)?|£?30 and above|"
            r"high end|expensive|pricey|"
            r"high(?:er|ly)?(?: end)? (?:price|prices|priced|cost|price range)|"
            r"prices? (?:range )?(?:is |are )?(?:high|expensive)",
        },
        "area": {
            "city centre": r"(?:city )?(?:centre|center)(?: of)?(?: the)?(?: city| town)?|central(?:ly)?|downtown",
            "riverside": r"riverside|river side|riverfront|riverbank|river",
        },
        "food": {
            "Fast food": r"fast ?food",
            "English": r"english|british",
            **{name: name.lower() for name in ("Chinese", "French", "Indian", "Italian", "Japanese")},
        },
        "eatType": {
            "coffee shop": r"coffee ?shops?|coffee ?house|cafe",
            "pub": r"pubs?",
            "restaurant": r"restaurants?",
        },
    },
    same={
        "customer rating": (("low", "1 out of 5"), ("average", "3 out of 5"), ("high", "5 out of 5")),
        "priceRange": (("cheap", "less than £20"), ("moderate", "£20-25"), ("high", "more than £30")),
    },
    general=frozenset({("eatType", "restaurant")}),
)
