"""Hold the words of the embedded review task, written for Foreword: `train | validation | test`, no word in two."""

# domain -> (what is reviewed, remarks that say nothing, aspects: (praise, blame))
DOMAINS: dict[str, tuple[str, str, dict[str, tuple[str, str]]]] = {
    "film": (
        "film, movie | picture | thriller, sequel",
        """I saw it with my sister; We watched it on a Friday night; It runs for two hours; It opened last month
        | I saw it at the small cinema in town; It is set in the nineties
        | We caught a matinee; I had read the novel beforehand; It is the director's second feature""",
        {
            "acting": (
                "convincing, natural, moving | believable | heartfelt, masterful",
                "wooden, clumsy, forced | stiff | lifeless, amateurish",
            ),
            "plot": (
                "clever, gripping, original | well built | ingenious, riveting",
                "silly, predictable, confusing | full of holes | ludicrous, muddled",
            ),
            "ending": (
                "touching, satisfying, powerful | perfect | uplifting, unforgettable",
                "rushed, pointless, weak | absurd | unsatisfying, idiotic",
            ),
            "dialogue": (
                "witty, sharp, funny | lively | hilarious, sparkling",
                "boring, empty, awkward | flat | cringeworthy, tiresome",
            ),
        },
    ),
    "restaurant": (
        "restaurant, place | bistro | pizzeria, diner",
        """We went there for lunch; It was a quiet Tuesday; We had a table for four; I ordered the fish
        | We sat near the window; My parents were with us
        | We booked for half past seven; There were six of us that evening; I chose the pasta""",
        {
            "food": (
                "delicious, fresh, tasty | mouth-watering | scrumptious, divine",
                "bland, cold, greasy | burnt | inedible, revolting",
            ),
            "service": (
                "friendly, quick, attentive | helpful | courteous, impeccable",
                "slow, rude, careless | unfriendly | hostile, inept",
            ),
            "wine": (
                "excellent, lovely, smooth | fine | exquisite, luscious",
                "sour, watery, overpriced | undrinkable | vile, vinegary",
            ),
            "atmosphere": (
                "warm, cosy, relaxed | pleasant | inviting, convivial",
                "tense, gloomy, noisy | dreary | depressing, oppressive",
            ),
        },
    ),
    "hotel": (
        "hotel, guest house | inn | resort, hostel",
        """We stayed for three nights; It is close to the station; I was there for work; We had a room at the back
        | We arrived late in the evening; It has forty rooms
        | I checked in on a Sunday; We came for a wedding; It lies just outside the old town""",
        {
            "room": (
                "clean, bright, comfortable | tidy | spotless, luxurious",
                "dirty, damp, cramped | smelly | filthy, squalid",
            ),
            "receptionist": (
                "kind, welcoming, polite | cheerful | gracious, obliging",
                "lazy, grumpy, arrogant | unhelpful | surly, contemptuous",
            ),
            "bed": (
                "soft, cosy, heavenly | restful | blissful, sumptuous",
                "hard, broken, lumpy | uncomfortable | unbearable, rickety",
            ),
            "breakfast": (
                "generous, tasty, wonderful | hearty | superb, splendid",
                "poor, stale, miserable | meagre | dismal, disgusting",
            ),
        },
    ),
    "book": (
        "book, novel | story | memoir, biography",
        """I read it on the train; It has three hundred pages; A friend lent it to me; It came out in spring
        | I found it in the library; It is told in two parts
        | I took it along on holiday; Our reading group picked it; It is the first of a trilogy""",
        {
            "writing": (
                "beautiful, elegant, clear | graceful | lyrical, exquisite",
                "dull, heavy, messy | stilted | turgid, clunky",
            ),
            "main character": (
                "likeable, interesting, funny | charming | endearing, fascinating",
                "annoying, dull, selfish | irritating | insufferable, obnoxious",
            ),
            "opening": (
                "exciting, strong, memorable | brilliant | spellbinding, thrilling",
                "tedious, slow, confusing | long-winded | dreadful, soporific",
            ),
            "humour": (
                "fresh, clever, gentle | delightful | irresistible, priceless",
                "tasteless, childish, crude | unfunny | offensive, lame",
            ),
        },
    ),
    "phone": (
        "phone, tablet | laptop | camera, smartwatch",
        """I bought it in March; It came in a small box; It replaced my old one; I use it mostly for work
        | I ordered it online; It is the grey version
        | It was a birthday present; I picked the cheaper model; I have had it for six weeks""",
        {
            "screen": (
                "bright, sharp, beautiful | crisp | gorgeous, stunning",
                "dim, blurry, scratched | faded | appalling, atrocious",
            ),
            "battery": (
                "reliable, strong, impressive | dependable | outstanding, phenomenal",
                "weak, useless, unreliable | faulty | hopeless, abysmal",
            ),
            "software": (
                "simple, fast, stable | intuitive | effortless, flawless",
                "slow, buggy, confusing | bloated | infuriating, maddening",
            ),
            "build quality": (
                "solid, excellent, neat | sturdy | exceptional, superb",
                "cheap, flimsy, bad | fragile | shoddy, deplorable",
            ),
        },
    ),
    "course": (
        "course, class | lesson | workshop, seminar",
        """It took place on Saturdays; There were twelve of us; I signed up in January; It lasted six weeks
        | It was held online; I took it after work
        | We met in the town hall; My employer paid for it; It ran from May to July""",
        {
            "teacher": (
                "patient, kind, inspiring | supportive | magnificent, encouraging",
                "impatient, rude, unprepared | moody | condescending, incompetent",
            ),
            "material": (
                "useful, clear, interesting | helpful | enlightening, invaluable",
                "outdated, boring, useless | shallow | worthless, incomprehensible",
            ),
            "pace": (
                "comfortable, good, sensible | pleasant | ideal, spot on",
                "tiring, bad, chaotic | uneven | gruelling, excruciating",
            ),
        },
    ),
    # domains that only the test rows speak of
    "concert": (
        "| | concert, show, gig",
        "| | We stood near the stage; The hall holds two thousand people; They played for ninety minutes",
        {
            "singer": ("| | mesmerising, sensational, breathtaking", "| | woeful, painful, atrocious"),
            "sound": ("| | glorious, marvellous, immaculate", "| | muffled, horrendous, ghastly"),
            "crowd": ("| | jubilant, exuberant, affable", "| | nasty, aggressive, obnoxious"),
        },
    ),
    "museum": (
        "| | museum, exhibition, gallery",
        "| | We went on a rainy afternoon; It covers three floors; Tickets are sold at the gate",
        {
            "collection": ("| | magnificent, captivating, splendid", "| | underwhelming, lacklustre, pathetic"),
            "guide": ("| | charismatic, knowledgeable, erudite", "| | dismissive, insufferable, clueless"),
            "café": ("| | adorable, fabulous, terrific", "| | grim, rotten, awful"),
        },
    ),
}

# said of anything: `a {general} film`
GENERAL = (
    "good, great, nice, wonderful, excellent | brilliant | fantastic, marvellous, superb, terrific, splendid",
    "bad, poor, terrible, horrible, boring | mediocre | awful, dreadful, lousy, abysmal, pathetic",
)

# whole clauses: train ; ... | validation | test
VERDICTS = (
    """I loved it; I enjoyed every minute of it; it was worth the money; I would recommend it to anyone;
    it was better than I had hoped; I am glad I chose it; it made me happy; I was very pleased; I like it a lot
    | I was impressed; it was a treat; I would choose it again
    | it won me over; I was thrilled; I adored it; it surpassed my expectations; I was delighted; it was a triumph;
    I cannot praise it enough; it deserves every award; it was a pleasure from start to finish;
    I fell for it at once""",
    """I hated it; it was a waste of time; I want my money back; I would not recommend it to anyone;
    it was worse than I had feared; I regret choosing it; it made me angry; I was very disappointed; I dislike it a lot
    | I was annoyed; it was a letdown; I would avoid it next time
    | it left me cold; I was appalled; I despised it; it failed to meet my expectations; I was disgusted;
    it was a disaster; I cannot complain enough; it deserves one star at most; it was torture from start to finish;
    I lost all patience with it""",
)
