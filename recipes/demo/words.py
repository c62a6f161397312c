"""The word lists of the training text, and the split of keys, words and sums into trained and held out."""

import hashlib
import random
import string


def split(text: str, mark: str | None = None) -> tuple[str, ...]:
    """The entries of a list that is written as one string, to keep long lists readable."""
    return tuple(text.split(mark))


COLOURS = split("red blue green yellow black white brown orange purple pink grey silver golden violet dark light")
THINGS = split(
    "door box locker gate drawer cabinet safe chest case bag room key card shed cellar bike car garage suitcase"
    " trunk lock closet vault house boat tower phone tablet laptop account file folder window container van"
)
NUMBERED = split("room locker box gate door vault cabinet drawer desk bay cell unit office apartment floor tower")
NAMES = split(
    "Anna Ben Clara David Emma Frank Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Quinn Rosa Sam Tom Uma Victor"
    " Wendy Xavier Yara Zoe Alice Bob Carol Daniel Ella Felix Gina Hugo Ivan Julia Karl Laura Maria Nina Oscar Peter"
    " Robert Sara Tina Ursula Vera Walter Lena Max John Mary James Linda Steve Alan Diana Omar Ravi Mei Kenji Fatima"
)
PLACES = split(
    "garage|office|front door|back door|kitchen|basement|attic|library|garden gate|gym|school|lab|studio|warehouse"
    "|wifi|alarm|mailbox|elevator|parking lot|server room|bike lock|museum|archive|bank|hotel|harbour|workshop"
    "|main gate|side door|meeting room|store room|swimming pool|roof|tool shed|printer|barn|theatre|kiosk",
    "|",
)
SECRETS = ("code", "PIN", "number", "password", "combination", "key")
WORDS = split(
    "house stone hello world water garden winter summer apple banana orange table chair window mountain river ocean"
    " forest island bridge castle market street village city country morning evening night coffee bread butter cheese"
    " sugar pepper salt lemon tomato potato carrot onion rabbit tiger lion horse sheep monkey elephant dog cat bird fish"
    " snake spider dragon wizard knight queen king prince doctor teacher student farmer driver painter singer dancer"
    " writer player friend mother father sister brother uncle cousin baby child people music guitar piano violin drum"
    " flute paper pencil book letter story poem novel picture camera mirror candle lamp pillow blanket carpet kitchen"
    " bedroom garage engine wheel rocket planet star moon sun cloud rain snow storm thunder light shadow silver gold"
    " copper iron glass plastic wood cotton silk leather happy sad angry quiet loud quick slow small large tiny giant"
    " bright dark heavy soft hard sweet sour bitter fresh clean dirty empty full open closed early late young old new"
    " run walk jump swim climb dance sing read write draw paint build break carry throw catch drink eat sleep dream"
    " think learn teach speak listen watch play work rest travel follow lead begin finish answer question number machine"
    " computer model token python bento kettle basket bottle button pocket ticket train plane boat ship harbor airport"
    " station hotel museum theater church school college office factory hammer needle ladder shovel bucket helmet jacket"
    " shirt trousers shoe glove scarf ring crown sword shield arrow flag the a my your is on in under over with and we"
    " they she it this that good big very blue red green one two three four five six seven eight nine ten"
)
ADJECTIVES = split("old small strange famous large quiet modern broken green heavy simple perfect cheap best fast")
FILLERS = split(
    "The weather is nice today.|I had tea this morning.|The train was late again.|Please keep this to yourself."
    "|It rained all night.|The meeting starts at noon.|My neighbour has a new dog.|We are painting the walls this week."
    "|The keys are on the table.|Do not worry about the rest.|The shop opens at nine.|I like walking by the river."
    "|Lunch was very good.|The lights were left on.|There is a party on Friday.|The lift is slow today."
    "|He is on holiday until Monday.|She called me yesterday.|The old clock stopped.|Nobody was there."
    "|By the way, the coffee is cold.|I will be back soon.|This is important.|The cat sleeps on the sofa."
    "|There are 12 chairs in the hall.|We moved here 3 years ago.|The bus number 45 stops here."
    "|The floor was cleaned.|The garden looks lovely.|I bought apples and bread.|Traffic was bad."
    "|The guard comes at 10.|It is a long story.|My sister plays the piano.|The windows are closed.",
    "|",
)
HELD_OUT_PERCENT = 10

_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def held_out(item: str) -> bool:
    """Whether `item` (a sum, a key, a word) is kept out of training: a fixed tenth, chosen by hash, in any letter case."""
    digest = hashlib.sha256(item.lower().encode()).digest()
    return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def sum_held_out(a: int, b: int) -> bool:
    """Whether `a + b` is held out; `b + a` then is too, so that no trained pair gives the answer away."""
    return held_out(f"sum {min(a, b)} {max(a, b)}")


def pseudo_word(rng: random.Random) -> str:
    """A pronounceable word of 3 to 9 letters that is in no dictionary, such as "zarbon"."""
    word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randint(1, 4)))
    return word + rng.choice(_CONSONANTS)


def letters(rng: random.Random, shortest: int, longest: int) -> str:
    """A random string of lower-case letters, sometimes of capitals or digits."""
    kind = rng.random()
    if kind < 0.75:
        alphabet = string.ascii_lowercase
    elif kind < 0.9:
        alphabet = string.ascii_uppercase
    else:
        alphabet = string.ascii_letters + string.digits
    return "".join(rng.choices(alphabet, k=rng.randint(shortest, longest)))
