"""The sentences of simulated trials: a small grammar of everyday remarks, and its split into train, val and test.

Sentences share words and turns of phrase, as those of a small copy-task corpus do, but no sentence stands in two
splits, whatever the seed: the split belongs to the grammar, not to a simulation.
"""

from __future__ import annotations

import re
from functools import cache
from itertools import product
from typing import Final

from sottovoce.core.random import numpy_generator
from sottovoce.core.splits import Split

MAX_SENTENCES_PER_TEMPLATE: Final = 200
"""A template with more readings is thinned to this many, so that no turn of phrase dominates."""

_GRAMMAR_SEED: Final = 15
"""Fixed, so that every simulation has the same sentences in the same splits."""

_SLOTS: Final[dict[str, str]] = {
    "colour": "red|blue|green|white|black|old|new|big|small|brown|yellow|heavy",
    "noun": "cup|book|bag|coat|box|chair|hat|key|lamp|phone|shirt|bottle|blanket|pillow|picture|knife|watch|"
    "plate|spoon|basket|candle|ticket|newspaper|umbrella|camera|guitar|pencil|jacket|mirror|towel|carpet|"
    "clock|wallet|ladder|hammer|brush|ring|toy",
    "thing": "the <colour> <noun>",
    "where": "on the table|on the bed|on the floor|by the door|under the chair|in the kitchen|in the car|"
    "near the window|behind the house|beside the sofa|in the cupboard|upstairs|on the shelf",
    "person": "my mother|my father|my brother|my sister|my friend|the nurse|the doctor|our neighbor|the teacher|"
    "my wife|my uncle|my aunt|my cousin|my daughter|my son|the lawyer|the farmer|the driver|the waiter|"
    "your boss",
    "name": "Anna|David|Peter|Laura|Tom|Susan|George|Emma|Robert|Helen|Michael|Julia|Alice|Frank|Rachel|Kevin",
    "place": "the store|the park|the office|the library|the bank|the beach|the market|the hospital|the station|"
    "the school|the church|the museum|the airport|the bakery|the theater|the harbor|the village|the farm|"
    "the bridge|the pool",
    "day": "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday",
    "time": "today|tomorrow|tonight|on <day>|next week|after lunch|before dinner|in an hour|this evening|"
    "this weekend|soon|next month",
    "past": "yesterday|last night|last week|this morning|on <day>|two days ago|last summer|an hour ago|last winter",
    "number": "two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty",
    "food": "some coffee|some water|a cup of tea|a glass of milk|some soup|an apple|a sandwich|some bread|"
    "a piece of cake|some rice|orange juice|some cheese|fresh fruit|roast chicken|a boiled egg|"
    "bread and butter|fried potatoes|dark chocolate|ice cream|warm honey|a banana|tomato salad",
    "meal": "breakfast|lunch|dinner",
    "activity": "watch a movie|read the news|listen to music|play a game|take a walk|go for a swim|cook dinner|"
    "write a letter|call my sister|sit outside|go to bed|clean the house|feed the dog|wash my hands|"
    "visit my father|ride my bicycle|paint the fence|plant a tree|catch the train|practice the piano|"
    "finish my homework|learn a language|take a picture|pay the bill|buy a ticket|build a shelf|"
    "fix the roof|water the roses|dance with Julia|change my clothes",
    "feeling": "tired|hungry|thirsty|happy|sad|sick|busy|ready|worried|much better|angry|nervous|proud|lonely|"
    "excited|calm|sleepy|surprised|confused",
    "weather": "cold|warm|sunny|windy|cloudy|very hot|foggy|stormy|dry|freezing",
    "event": "party|meeting|game|wedding|trip|concert|story|lecture|festival|race|holiday|parade",
    "body": "head|back|arm|leg|foot|knee|hand|shoulder|throat|neck|elbow|stomach|finger|ankle|nose|ear|chest",
    "device": "light|radio|heat|music|fan|television|computer|oven|washing machine|engine",
    "animal": "dog|cat|bird|horse|rabbit|mouse|cow|sheep|duck|fox|elephant|monkey|turtle",
    "kind": "good|great|long|short|strange|funny|beautiful|terrible|boring|difficult|wonderful|quiet|serious|"
    "clever|simple",
    "work": "movie|book|story|song|trip|picture|day|poem|joke|film|dream|speech|question|idea",
}

_TEMPLATES: Final = (
    "[Could|Can|Would] you [please |]bring me <thing>?",
    "Please [put|leave] <thing> <where>.",
    "Where did you [put|find|buy] <thing>?",
    "I think <thing> is <where>.",
    "Have you seen <thing> [again|anywhere]?",
    "<thing> belongs to <person>.",
    "I gave <thing> to <person> <past>.",
    "I [want|have|need] to <activity> <time>.",
    "We are going to <activity> <time>.",
    "Would you like to <activity> with [me|us|him|her]?",
    "I don't want to <activity> right now.",
    "Let's <activity> <time>.",
    "It's [almost|finally] time to <activity>.",
    "I would like <food>, please.",
    "Can I have <food> for <meal>?",
    "<person> made <food> for [us|them|everybody].",
    "There is <food> <where>.",
    "<person> is <feeling> <time>.",
    "I felt <feeling> <past>.",
    "Are you [still|already] <feeling>, <name>?",
    "<person> went to <place> <past>.",
    "How do I get to <place> from here?",
    "I'll meet you at <place> at <number>.",
    "The [bus|train] to <place> leaves at <number>.",
    "<person> works at <place> on <day>.",
    "It will be <weather> <time>.",
    "The weather was <weather> <past>.",
    "I hope it is <weather> on <day>.",
    "<name> called <past> and said [hello|goodbye].",
    "Did <name> tell you about the <event>?",
    "The <event> starts at <number> on <day>.",
    "<name> and <person> enjoyed the <event> <past>.",
    "My <body> [hurts|feels better|is weak] <time>.",
    "The <animal> is [sleeping|hiding|eating] <where>.",
    "<number> [children|people|birds|boys|girls] are [playing|waiting|singing|laughing] outside.",
    "[Turn on|Turn off|Turn down|Turn up|Check] the <device>, please.",
    "The <device> is too [loud|bright|weak|old] for me.",
    "That was a [very |]<kind> <work>, wasn't it?",
    "I've never [seen|had|heard] such a <kind> <work>.",
    "How much does <thing> cost?",
    "Thank you for [your help|calling me|coming over|the coffee|the flowers|waiting] <past>.",
    "I don't know [what|where|when|why|how] <name> [did it|went|found it].",
    "[He|She] [always|never|often|sometimes] [drinks tea|eats fish|reads books|sings] [before|after] <meal>.",
    "[He|She] [drives|walks|runs] to <place> every [day|week|year|evening].",
    "The [boy|girl|woman|man] [opened|closed|painted|fixed] the [door|window|gate|house].",
    "We [live|lived|stayed] in the <colour> house near <place>.",
    "What do you [think|know|say] about this <kind> <work>?",
    "You're [quite|really|absolutely] right about <name>.",
    "[Everybody|Nobody] knows the answer to [that|this|my] question.",
    "I can't [hear|see|find|understand] <name> [very well|at all].",
    "[Maybe|Perhaps] we should talk about this <time>.",
    "The [river|road|street] is <number> miles from <place>.",
    "My <noun> cost only <number> dollars.",
    "[Good morning|Good night|Good evening|Hello], <name>, how are you?",
    "[Whose|Which] <noun> is [this|that] over there?",
    "[They|We] usually [measure|choose|change] the [size|shape|price] first.",
    "The [soup|coffee|bread|cake|fish|chicken|salad] tastes [too salty|delicious|awful|fine|a little strange] <time>.",
    "Remember to [lock|close|open|paint] the [door|window|gate|garage] before you leave.",
    "My [son|daughter|nephew] is learning to [swim|read|drive|cook|dance|sing|write|fly].",
    "There were <number> [ducks|boats|cars|trees|cows] near the [lake|river|bridge|harbor].",
    "<person> [lost|broke|sold|borrowed|cleaned] <thing> <past>.",
    "Which [train|bus|road|bridge|boat] goes to <place> <time>?",
    "I forgot [my password|her birthday|the address|his number|your question] again <past>.",
    "It takes <number> [minutes|hours] to [drive|walk|ride] to <place>.",
    "[Sometimes|Usually] the [children|girls|boys] [fight|argue|shout|laugh] after <meal>.",
    "<name> [promised|decided|tried|forgot] to <activity>.",
    "Why was <person> so <feeling> <past>?",
    "If it is <weather>, we could <activity>.",
    "<thing> and <number> books are <where>.",
)


def _readings(pattern: str) -> list[str]:
    """Every string that `pattern` stands for: `[a|b]` is a choice, `<slot>` one of the slot's fillers."""
    pieces = re.split(r"(\[[^\]]*\]|<\w+>)", pattern)
    choices = []
    for piece in pieces:
        if piece.startswith("["):
            choices.append(piece[1:-1].split("|"))
        elif piece.startswith("<"):
            choices.append([reading for filler in _SLOTS[piece[1:-1]].split("|") for reading in _readings(filler)])
        else:
            choices.append([piece])
    return ["".join(reading) for reading in product(*choices)]


@cache
def all_sentences() -> tuple[str, ...]:
    """Every sentence of the grammar with case and punctuation, each once, in a fixed order without meaning."""
    sentences: dict[str, None] = {}
    for number, template in enumerate(_TEMPLATES):
        readings = _readings(template)
        order = numpy_generator(_GRAMMAR_SEED, "simulation", number).permutation(len(readings))
        chosen = sorted(order[:MAX_SENTENCES_PER_TEMPLATE].tolist())
        sentences.update(dict.fromkeys(readings[i][0].upper() + readings[i][1:] for i in chosen))
    listed = list(sentences)
    shuffled = numpy_generator(_GRAMMAR_SEED, "split").permutation(len(listed)).tolist()
    return tuple(listed[i] for i in shuffled)


@cache
def sentences_of(split: Split) -> tuple[str, ...]:
    """The sentences of one split: four fifths of the grammar for train, a tenth each for val and test."""
    sentences = all_sentences()
    tenth = len(sentences) // 10
    bounds = {"val": (0, tenth), "test": (tenth, 2 * tenth), "train": (2 * tenth, len(sentences))}
    first, end = bounds[split]
    return sentences[first:end]
