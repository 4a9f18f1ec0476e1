"""What the embedded model can be asked for: objects, background colours and the ways to say it."""

import hashlib
import random
import re

# Name by name, the code point that Noto Color Emoji draws. Unicode's short names, simplified.
_FOOD = """
red apple 🍎|green apple 🍏|pear 🍐|orange 🍊|lemon 🍋|banana 🍌|watermelon 🍉|grapes 🍇|strawberry 🍓|cherries 🍒
peach 🍑|pineapple 🍍|coconut 🥥|kiwi 🥝|tomato 🍅|eggplant 🍆|avocado 🥑|broccoli 🥦|chili pepper 🌶|corn 🌽|carrot 🥕
potato 🥔|croissant 🥐|bread 🍞|pretzel 🥨|cheese 🧀|pancakes 🥞|bacon 🥓|hamburger 🍔|french fries 🍟|pizza 🍕|hot dog 🌭
taco 🌮|popcorn 🍿|sushi 🍣|shrimp 🦐|ice cream 🍦|donut 🍩|cookie 🍪|birthday cake 🎂|cupcake 🧁|pie 🥧|chocolate bar 🍫
candy 🍬|lollipop 🍭|honey pot 🍯|wine glass 🍷|beer mug 🍺|cocktail 🍸|mushroom 🍄
"""
_ANIMALS = """
dog 🐶|cat 🐱|mouse 🐭|hamster 🐹|rabbit 🐰|fox 🦊|bear 🐻|panda 🐼|koala 🐨|tiger 🐯|lion 🦁|cow 🐮|pig 🐷|frog 🐸|monkey 🐵
chicken 🐔|penguin 🐧|chick 🐤|duck 🦆|eagle 🦅|owl 🦉|bat 🦇|wolf 🐺|horse 🐴|unicorn 🦄|bee 🐝|caterpillar 🐛|butterfly 🦋
snail 🐌|ladybug 🐞|ant 🐜|spider 🕷|scorpion 🦂|turtle 🐢|snake 🐍|lizard 🦎|dinosaur 🦖|octopus 🐙|squid 🦑|crab 🦀|lobster 🦞
blowfish 🐡|tropical fish 🐠|dolphin 🐬|whale 🐳|shark 🦈|crocodile 🐊|zebra 🦓|gorilla 🦍|elephant 🐘|hippopotamus 🦛
rhinoceros 🦏|camel 🐪|giraffe 🦒|kangaroo 🦘|sheep 🐑|goat 🐐|deer 🦌|rooster 🐓|turkey 🦃|peacock 🦚|parrot 🦜|swan 🦢
flamingo 🦩|raccoon 🦝|sloth 🦥|hedgehog 🦔|dragon 🐲
"""
_NATURE = """
cactus 🌵|christmas tree 🎄|pine tree 🌲|tree 🌳|palm tree 🌴|seedling 🌱|clover 🍀|maple leaf 🍁|tulip 🌷|rose 🌹|hibiscus 🌺
sunflower 🌻|cherry blossom 🌸|bouquet 💐|shell 🐚|sun 🌞|moon 🌙|star ⭐|rainbow 🌈|snowflake ❄|snowman ⛄|fire 🔥|volcano 🌋
planet earth 🌍
"""
_THINGS = """
umbrella ☂|balloon 🎈|gift 🎁|party popper 🎉|pumpkin 🎃|soccer ball ⚽|basketball 🏀|tennis racket 🎾|football 🏈|trophy 🏆
gold medal 🥇|dartboard 🎯|dice 🎲|puzzle piece 🧩|teddy bear 🧸|kite 🪁|palette 🎨|guitar 🎸|violin 🎻|trumpet 🎺|saxophone 🎷
drum 🥁|piano 🎹|microphone 🎤|headphones 🎧|camera 📷|television 📺|laptop 💻|phone 📱|telephone ☎|light bulb 💡|candle 🕯
book 📕|pencil ✏|scissors ✂|key 🔑|lock 🔒|hammer 🔨|magnet 🧲|gear ⚙|axe 🪓|shield 🛡|dagger 🗡|bomb 💣|microscope 🔬
alarm clock ⏰|hourglass ⌛|money bag 💰|diamond 💎|crown 👑|ring 💍|top hat 🎩|sunglasses 🕶|shirt 👕|dress 👗|sneaker 👟
backpack 🎒|handbag 👜|lipstick 💄|heart ❤|bell 🔔|anchor ⚓
"""
_PLACES = """
car 🚗|taxi 🚕|bus 🚌|ambulance 🚑|fire engine 🚒|truck 🚚|tractor 🚜|bicycle 🚲|motorcycle 🏍|scooter 🛵|train 🚂|airplane ✈
helicopter 🚁|rocket 🚀|flying saucer 🛸|sailboat ⛵|ship 🚢|traffic light 🚦|house 🏠|castle 🏰|tent ⛺|church ⛪|ferris wheel 🎡
statue of liberty 🗽|island 🏝
"""
_FACES = """
smiling face 😀|cool face 😎|angry face 😡|clown 🤡|robot 🤖|alien 👽|ghost 👻|skull 💀|devil 😈|space invader 👾|santa claus 🎅
brain 🧠|eye 👁
"""

OBJECTS = {}
for _entry in re.split(r"[|\n]", _FOOD + _ANIMALS + _NATURE + _THINGS + _PLACES + _FACES):
    if _entry:
        _name, _glyph = _entry.rsplit(" ", 1)
        OBJECTS[_name] = _glyph
NAMES = list(OBJECTS)
# What is drawn where nothing is asked for.
PLAIN = ["red apple", "strawberry", "mushroom", "dog", "fox", "panda", "chick", "butterfly", "ladybug", "turtle", "sunflower",
         "tree", "sun", "star", "planet earth", "balloon", "gift", "heart", "car", "rocket", "house", "smiling face"]

COLOURS = {
    "red": (220, 60, 55),
    "orange": (245, 150, 50),
    "yellow": (250, 220, 90),
    "lime": (175, 225, 80),
    "green": (70, 160, 85),
    "teal": (50, 175, 170),
    "sky blue": (140, 205, 250),
    "blue": (60, 115, 225),
    "navy": (30, 45, 105),
    "purple": (140, 85, 200),
    "pink": (250, 165, 200),
    "brown": (135, 95, 65),
    "beige": (235, 215, 180),
    "gray": (150, 150, 155),
    "black": (28, 28, 32),
    "white": (248, 248, 248),
}
COLOUR_NAMES = list(COLOURS)

SIZE_WORDS = {"small": ["small", "small", "small", "tiny", "little"], "large": ["large", "large", "large", "big", "huge"]}
# Words that change nothing, so that words which the model does not know change little.
_FILLERS = "cute nice lovely beautiful pretty simple funny bright happy wonderful plain shiny perfect amazing soft".split()
_ENDINGS = ["emoji", "emoji style", "clip art", "icon", "digital art", "high quality", "flat design"]
_BEFORE = {
    "left": ["and", "and", "next to", "beside", "to the left of", "on the left of", "left of"],
    "right": ["to the right of", "on the right of", "right of"],
    "above": ["above", "above", "over", "on top of"],
    "below": ["below", "below", "under", "beneath"],
}


def held_out(*parts):
    """Whether this combination is kept from training: a fixed tenth of all."""
    return hashlib.sha256("/".join(parts).encode()).digest()[0] < 26


def pair_held_out(first, second):
    return held_out("pair", *sorted((first, second)))


def _article(noun, rng):
    if noun in ("cherries", "grapes", "pancakes", "bacon", "broccoli", "bread", "corn", "sushi", "popcorn", "fire",
                "french fries", "headphones", "scissors", "sunglasses", "cheese", "santa claus", "planet earth"):
        return noun if rng.random() < 0.7 else f"some {noun}"
    roll = rng.random()
    if roll < 0.8:
        return ("an " if noun[0] in "aeiou" else "a ") + noun
    return noun if roll < 0.9 else f"the {noun}"


def _pseudo_word(rng):
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiouy") for _ in range(rng.randint(1, 4)))


def nonsense(rng):
    """A prompt without a word that the model could know: it is trained to mean as much as none."""
    return " ".join(_pseudo_word(rng) for _ in range(rng.randint(1, 8)))


def _noun(name, size, rng):
    words = [name]
    if size != "normal":
        words.insert(0, rng.choice(SIZE_WORDS[size]))
    if rng.random() < 0.1:
        words.insert(0, rng.choice(_FILLERS) if rng.random() < 0.7 else _pseudo_word(rng))
    return _article(" ".join(words), rng)


def _with_background(scene, colour, rng):
    if colour is None:
        return scene
    if colour == "gray" and rng.random() < 0.4:
        colour = "grey"
    article = "an " if colour[0] in "aeiou" else "a "
    roll = rng.random()
    if roll < 0.55:
        return f"{scene} on {article}{colour} background"
    if roll < 0.70:
        return f"{scene}, {colour} background"
    if roll < 0.78:
        return f"{scene} on {colour}"
    if roll < 0.84:
        return f"{scene} with {article}{colour} background"
    if roll < 0.89:
        return f"{scene} in front of {article}{colour} background"
    if roll < 0.95:
        return f"{article}{colour} background with {scene}"
    return f"{colour} background, {scene}"


def phrase(scene, rng):
    """One of many ways to ask for a scene (see `scenes.sample`)."""
    objects = [_noun(o["name"], o["size"], rng) for o in scene["objects"]]
    if len(objects) == 2:
        first, second = ("left", "right") if scene["layout"] == "row" else ("above", "below")
        if rng.random() < (0.85 if scene["layout"] == "row" else 0.7):
            text = f"{objects[0]} {rng.choice(_BEFORE[first])} {objects[1]}"
        else:
            text = f"{objects[1]} {rng.choice(_BEFORE[second])} {objects[0]}"
    else:
        text = objects[0]
    roll = rng.random()
    if roll < 0.06:
        text = rng.choice(["a picture of ", "a drawing of ", "an image of ", "draw ", "an emoji of "]) + text
    text = _with_background(text, scene["colour_said"], rng)
    if rng.random() < 0.05:
        text += ", " + (rng.choice(_ENDINGS) if rng.random() < 0.7 else nonsense(rng))
    if rng.random() < 0.1:
        text = text[0].upper() + text[1:] + ("." if rng.random() < 0.5 else "")
    return text


def corpus(count=40_000, seed=0):
    """Prompts for training the tokenizer."""
    import scenes

    rng = random.Random(seed)
    for _ in range(count):
        yield phrase(scenes.sample(rng), rng)
