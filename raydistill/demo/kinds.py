"""The kinds of entity of the demo's world, with their attributes, questions and statements. Data only; the other phrases and
the name words live in `wording`, what is drawn from both in `world` (facts, passages) and `dialogue` (conversations)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attribute:
    """One thing that can be asked about a kind.

    Attributes:
        name: unique within the kind.
        value: a kind (the attribute is a relation), "year", "number", or a comma-separated list of values.
        noun: how an ellipsis names it ("and the population?").
        ask: questions; {e} is the entity. The first is the form of rewrites.
        state: statements of passages and answers; {e} entity, {v} value.
    """

    name: str
    value: str
    noun: str
    ask: tuple[str, ...]
    state: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of entity: its noun, how its names are built from name words (a, b), and its attributes."""

    noun: str
    names: tuple[str, ...]
    attributes: tuple[Attribute, ...]

    def attribute(self, name: str) -> Attribute:
        """Return the attribute of that name; KeyError when the kind has none."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        raise KeyError(name)


PERSON = Kind(
    noun="person",
    names=("{a} {b}",),
    attributes=(
        Attribute(
            "birthplace",
            "town",
            "birthplace",
            ("where was {e} born?", "in which town was {e} born?", "what is the birthplace of {e}?"),
            (
                "{e} was born in {v}.",
                "{e} is a native of {v}.",
                "{v} is the town in which {e} came into the world.",
                "{e} spent the first years of life in {v}, the birthplace of the whole family.",
            ),
        ),
        Attribute(
            "birthyear",
            "year",
            "year of birth",
            ("when was {e} born?", "in which year was {e} born?"),
            (
                "{e} was born in the year {v}.",
                "The life of {e} began in {v}.",
                "The church books give {v} as the year of birth of {e}.",
            ),
        ),
        Attribute(
            "profession",
            "painter,surgeon,botanist,carpenter,violinist,chemist,lawyer,sailor,printer,astronomer,teacher,engineer",
            "profession",
            ("what was the profession of {e}?", "what did {e} do for a living?", "which job did {e} have?"),
            (
                "By profession {e} was a {v}.",
                "{e} earned a living as a {v}.",
                "{e} was trained as a {v} and kept that job for decades.",
            ),
        ),
        Attribute(
            "employer",
            "company",
            "employer",
            ("which company employed {e}?", "who was the employer of {e}?", "for whom did {e} work?"),
            ("{e} was employed by {v}.", "{v} hired {e} at an early age.", "For most of the career {e} worked for {v}."),
        ),
        Attribute(
            "award",
            "silver quill,golden lantern,royal medal,winter prize,harbour cup,laurel ring,founders star,green ribbon",
            "award",
            ("which award did {e} win?", "what prize was given to {e}?"),
            ("{e} won the {v}.", "The {v} was given to {e}.", "Among the honours of {e} the {v} is the highest."),
        ),
        Attribute(
            "pastime",
            "chess,fishing,archery,beekeeping,gardening,rowing,pottery,skating,falconry,singing",
            "pastime",
            ("what was the pastime of {e}?", "what did {e} enjoy in spare time?"),
            (
                "The favourite pastime of {e} was {v}.",
                "In spare hours {e} turned to {v}.",
                "Friends remember {e} for a love of {v}.",
            ),
        ),
    ),
)

TOWN = Kind(
    noun="town",
    names=("{a}", "port {a}", "{a} falls", "north {a}", "{a} hill"),
    attributes=(
        Attribute(
            "population",
            "number",
            "population",
            ("what is the population of {e}?", "how many people live in {e}?", "how many inhabitants does {e} have?"),
            (
                "{e} has a population of {v}.",
                "About {v} people live in {e}.",
                "The last census counted {v} residents in {e}.",
            ),
        ),
        Attribute(
            "mayor",
            "person",
            "mayor",
            ("who is the mayor of {e}?", "who governs {e}?", "who leads the council of {e}?"),
            (
                "The mayor of {e} is {v}.",
                "{v} was elected to govern {e}.",
                "The council of {e} is led by {v}.",
            ),
        ),
        Attribute(
            "founded",
            "year",
            "founding year",
            ("when was {e} founded?", "how old is {e}?", "in which year was {e} settled?"),
            ("{e} was founded in {v}.", "The first settlers reached {e} in {v}.", "{e} received its charter in {v}."),
        ),
        Attribute(
            "river",
            "slow amber,white otter,little marrow,deep willow,long heron,black reed,cold spindle,upper thorn",
            "river",
            ("which river flows through {e}?", "on which river does {e} lie?"),
            ("The river {v} flows through {e}.", "{e} lies on the banks of the {v}.", "The waters of the {v} divide {e}."),
        ),
        Attribute(
            "speciality",
            "glass,cheese,rope,salt,carpets,cider,bells,paper,saffron,clocks,lace,honey",
            "speciality",
            ("what is {e} known for?", "which product is {e} famous for?"),
            ("{e} is known for its {v}.", "Traders come to {e} to buy {v}.", "The wealth of {e} rests upon {v}."),
        ),
        Attribute(
            "festival",
            "lantern week,boat race,night market,apple fair,drum parade,kite day,snow ball,masked dance",
            "festival",
            ("which festival is held in {e}?", "what do the people of {e} celebrate?"),
            ("Every year the {v} is held in {e}.", "The people of {e} celebrate the {v}.", "The {v} draws guests to {e}."),
        ),
    ),
)

FILM = Kind(
    noun="film",
    names=("the {a} affair", "the {a} garden", "{a} at midnight", "the last {a}", "return to {a}"),
    attributes=(
        Attribute(
            "director",
            "person",
            "director",
            ("who directed {e}?", "who was the director of {e}?", "who made {e}?"),
            ("{e} was directed by {v}.", "{v} sat in the director's chair of {e}.", "{e} is the work of {v}, who shot it."),
        ),
        Attribute(
            "released",
            "year",
            "release year",
            ("when was {e} released?", "in which year did {e} come out?"),
            ("{e} was released in {v}.", "{e} came to the cinemas in {v}.", "Audiences first saw {e} in {v}."),
        ),
        Attribute(
            "setting",
            "town",
            "setting",
            ("where is {e} set?", "in which town does {e} take place?"),
            ("{e} is set in {v}.", "The story of {e} takes place in {v}.", "The plot of {e} unfolds in the streets of {v}."),
        ),
        Attribute(
            "genre",
            "comedy,thriller,western,musical,mystery,romance,satire,fantasy",
            "genre",
            ("what is the genre of {e}?", "what kind of film is {e}?"),
            ("{e} is a {v}.", "Critics describe {e} as a {v}.", "{e} belongs to the genre of the {v}."),
        ),
        Attribute(
            "length",
            "number",
            "length",
            ("how long is {e}?", "what is the running time of {e}?"),
            ("{e} is {v} seconds long.", "The running time of {e} is {v} seconds.", "{e} lasts {v} seconds."),
        ),
        Attribute(
            "studio",
            "company",
            "studio",
            ("which company produced {e}?", "who paid for {e}?"),
            ("{e} was produced by {v}.", "{v} paid for the making of {e}.", "The money behind {e} came from {v}."),
        ),
    ),
)

COMPANY = Kind(
    noun="company",
    names=("{a} works", "{a} and {b}", "{a} brothers", "{a} industries"),
    attributes=(
        Attribute(
            "founder",
            "person",
            "founder",
            ("who founded {e}?", "who started {e}?", "who is the founder of {e}?"),
            ("{e} was founded by {v}.", "{v} started {e} in a small shed.", "{v} set up {e} with borrowed money."),
        ),
        Attribute(
            "headquarters",
            "town",
            "headquarters",
            ("where is {e} based?", "in which town are the headquarters of {e}?"),
            ("{e} is based in {v}.", "The headquarters of {e} stand in {v}.", "{e} runs its main office from {v}."),
        ),
        Attribute(
            "product",
            "bicycles,pianos,lamps,tractors,cameras,umbrellas,engines,watches,stoves,tents",
            "product",
            ("what does {e} make?", "which product does {e} sell?"),
            ("{e} makes {v}.", "{e} sells {v} in many lands.", "The {v} of {e} are found in every home."),
        ),
        Attribute(
            "staff",
            "number",
            "staff",
            ("how many employees does {e} have?", "how large is the staff of {e}?", "how many people work at {e}?"),
            ("{e} has {v} employees.", "The staff of {e} numbers {v}.", "{v} workers are on the books of {e}."),
        ),
        Attribute(
            "opened",
            "year",
            "opening year",
            ("when did {e} open?", "since when does {e} exist?"),
            ("{e} opened in {v}.", "{e} has existed since {v}.", "The first order of {e} dates from {v}."),
        ),
        Attribute(
            "emblem",
            "red owl,blue anchor,iron wheel,silver fish,oak leaf,rising sun,twin towers,white horse",
            "emblem",
            ("what is the emblem of {e}?", "which sign does {e} use?"),
            ("The emblem of {e} is a {v}.", "{e} prints a {v} on every box.", "A {v} serves {e} as its sign."),
        ),
    ),
)

ANIMAL = Kind(
    noun="animal",
    names=("the {a} fox", "the {a} heron", "the {a} lizard", "the {a} moth", "the {a} deer"),
    attributes=(
        Attribute(
            "diet",
            "berries,beetles,snails,seeds,moss,frogs,roots,shrimp,acorns,nectar",
            "diet",
            ("what does {e} eat?", "what is the diet of {e}?"),
            ("{e} eats {v}.", "The diet of {e} consists of {v}.", "{e} feeds on {v} all year."),
        ),
        Attribute(
            "habitat",
            "marshes,dunes,pine woods,caves,meadows,cliffs,lakes,heaths",
            "habitat",
            ("where does {e} live?", "what is the habitat of {e}?"),
            ("{e} lives in {v}.", "The habitat of {e} is made of {v}.", "{e} makes its home among {v}."),
        ),
        Attribute(
            "discoverer",
            "person",
            "discoverer",
            ("who discovered {e}?", "who first described {e}?"),
            (
                "{e} was discovered by {v}.",
                "{v} was the first to describe {e}.",
                "Science owes its knowledge of {e} to {v}.",
            ),
        ),
        Attribute(
            "weight",
            "number",
            "weight",
            ("how heavy is {e}?", "what is the weight of {e}?", "how much does {e} weigh?"),
            ("{e} weighs {v} grams.", "An adult {e} reaches a weight of {v} grams.", "The scales show {v} grams for {e}."),
        ),
        Attribute(
            "region",
            "town",
            "region",
            ("near which town is {e} found?", "where can one see {e}?"),
            ("{e} is found near {v}.", "One can see {e} around {v}.", "The last herds of {e} roam close to {v}."),
        ),
        Attribute(
            "colour",
            "crimson,ochre,violet,turquoise,copper,ivory,charcoal,emerald",
            "colour",
            ("what colour is {e}?", "which colour does {e} have?"),
            ("The colour of {e} is {v}.", "{e} is {v} from head to tail.", "{e} wears a coat of {v}."),
        ),
    ),
)

BOOK = Kind(
    noun="book",
    names=("letters from {a}", "a history of {a}", "{a} nights", "songs of {a}"),
    attributes=(
        Attribute(
            "author",
            "person",
            "author",
            ("who wrote {e}?", "who is the author of {e}?"),
            ("{e} was written by {v}.", "{v} is the author of {e}.", "{e} came from the pen of {v}."),
        ),
        Attribute(
            "published",
            "year",
            "publication year",
            ("when was {e} published?", "in which year did {e} appear in print?"),
            ("{e} was published in {v}.", "{e} appeared in print in {v}.", "The first edition of {e} dates from {v}."),
        ),
        Attribute(
            "topic",
            "sea voyages,lost love,old wars,mountain life,court scandals,ghost stories,farming,stargazing",
            "topic",
            ("what is {e} about?", "what is the topic of {e}?"),
            ("{e} is about {v}.", "The topic of {e} is {v}.", "Readers of {e} learn much of {v}."),
        ),
        Attribute(
            "pages",
            "number",
            "number of pages",
            ("how many pages does {e} have?", "how thick is {e}?"),
            ("{e} has {v} pages.", "{e} fills {v} pages.", "At {v} pages {e} is a thick volume."),
        ),
        Attribute(
            "publisher",
            "company",
            "publisher",
            ("which company published {e}?", "who printed {e}?"),
            ("The publisher of {e} is {v}.", "{v} printed {e}.", "{e} left the presses of {v}."),
        ),
        Attribute(
            "language",
            "harbour speech,old highland,northern tongue,river dialect,court latin,valley cant",
            "language",
            ("in which language is {e} written?", "what is the language of {e}?"),
            ("{e} is written in {v}.", "The language of {e} is {v}.", "The text of {e} uses {v} throughout."),
        ),
    ),
)

KINDS: dict[str, Kind] = {kind.noun: kind for kind in (PERSON, TOWN, FILM, COMPANY, ANIMAL, BOOK)}
