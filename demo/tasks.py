"""The demo's two tasks as data: which words point to which answer, and the sentences around them.

A text says what it is about only through its cue words; the sentences are the same for every answer. Cues are listed
roughly from common to rare and drawn with Zipf weights, so a few labeled texts cover the head of each list and only
the unlabeled pile shows the tail. Every cue is a whole word of MiniLM's vocabulary, so retrieval can relate words
that no label has named: that is what the demo is built to show, and what its table must admit.

`HELPDESK` is the demo. `CLINIC` has another shape on purpose (longer notes, seven unequal classes, answers of several
word pieces) and nothing may be tuned on it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Domain:
    """One task: cues per answer, how often each answer occurs, and the sentences a text is made of."""

    instruction: str
    """System message; `{answers}` is replaced by the list of answers."""
    cues: dict[str, tuple[str, ...]]
    """Answer -> its cue words, common ones first."""
    weights: dict[str, float]
    """Answer -> relative frequency in the unlabeled pool and the test set."""
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    sentences: tuple[str, ...]
    """Each takes one `{cue}` and suits every cue of the domain."""
    naming: tuple[str, ...]
    """Each takes the `{answer}`: the few texts that say outright where they belong."""
    cue_counts: tuple[int, ...]
    """Numbers of cue sentences per text, drawn uniformly."""

    @property
    def answers(self) -> tuple[str, ...]:
        """The closed set of answers, in the order the instruction lists them."""
        return tuple(self.cues)

    @property
    def system(self) -> str:
        """The system message of every row."""
        return self.instruction.format(answers=", ".join(self.answers))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_QUEUES = {
    "billing": _words("""
        payment bill charge receipt fee tax price discount balance credit deposit cost bank cash budget
        expenses loan debt rent currency transaction purchase interest audit premium penalty expense accounting
        finance mortgage revenue funds subscription sum amount fine savings tariff financing profit dollar euro
        commission taxation wallet subsidy taxes costs"""),
    "delivery": _words("""
        parcel package shipment courier truck driver freight mail van warehouse shipping container route crate cargo
        transport customs stamp envelope post dispatch logistics carrier transit depot trailer dock loading harbor
        ferry railway vessel port airport wagon cart delay departure arrival packing import export freighter rail
        tracking supply distribution destination"""),
    "access": _words("""
        password account badge permission authentication token identity security authorization key credentials pin
        lock verification passport registration certificate signature clearance profile encryption membership permit
        identification approval restriction validation privacy privilege secret intruder theft fraud hacker breach
        hack protection guard admission entry card pass safe vault keys visa users code"""),
    "hardware": _words("""
        laptop keyboard monitor printer screen mouse battery cable computer camera scanner microphone speaker disk
        chip processor tablet phone fan display plug socket button console cartridge ink desktop projection machine
        memory circuit wire wires sensor motor device lens amplifier speakers cord electronics magnet cooler tape
        flash drive remote phones"""),
    "network": _words("""
        internet connection wireless server signal website broadband ethernet bandwidth antenna telephone link
        coverage reception gateway fiber traffic domain satellite host web hub proxy protocol packet node frequency
        transmission broadcast connectivity relay tower lan cellular telecommunications telecom channel portal radio
        interference page streaming cloud routing switch topology peer networking"""),
    "software": _words("""
        application program update version app file bug installation document browser database folder menu error
        upgrade virus backup editor patch template format font script icon crash archive setup calendar search module
        interface query macro graphics release compiler algorithm kernel syntax beta simulation developer data
        editing layout html encoding directory"""),
    "personnel": _words("""
        vacation salary contract holiday training manager employee interview pension overtime promotion payroll
        retirement wages bonus insurance job benefits recruitment employment staff maternity resignation career
        applicant colleague supervisor hiring internship union absence vacancy allowance candidate dismissal mentor
        intern workshop resume workforce wage recruit secretary boss coach shift qualifications sickness"""),
    "building": _words("""
        elevator window heating door roof toilet kitchen ceiling floor parking lighting carpet stairs lamp wall
        plumbing garage bathroom sink chair ventilation leak lobby corridor basement furniture pipe hallway entrance
        desk balcony garden fence boiler electricity alarm lift staircase courtyard curtain cupboard shelf bench
        paint tile cafeteria drain dust"""),
}

HELPDESK = Domain(
    instruction="Sort the ticket into one of these queues: {answers}.",
    cues=_QUEUES,
    weights=dict.fromkeys(_QUEUES, 1.0),
    openings=("Hello!", "Hi there!", "Good morning!", "Dear colleagues!", "Hi all!"),
    closings=("Thank you!", "Thanks in advance.", "Many thanks.", "Best regards.", "Please call me back."),
    sentences=(
        "There is a problem with the {cue}.",
        "Could someone look at the {cue}?",
        "I have a question about the {cue}.",
        "We had trouble with the {cue} again.",
        "Nobody here knows about the {cue}.",
        "I wrote about the {cue} on Monday.",
        "Please check the {cue} before noon.",
        "Something is wrong with the {cue}.",
        "We keep asking about the {cue}.",
        "I need help with the {cue}.",
        "What happened to the {cue}?",
        "We still wait for news on the {cue}.",
        "This also concerns the {cue}.",
        "It might be because of the {cue}.",
    ),
    naming=(
        "I think this is one for {answer}.",
        "Please pass this on to {answer}.",
        "Is this a matter for {answer}?",
    ),
    cue_counts=(2, 3),
)

_DEPARTMENTS = {
    "cardiology": _words("""
        heart chest pulse blood pressure artery valve rhythm heartbeat circulation vein fatigue swelling
        arteries veins murmur collapse bleeding oxygen vessels"""),
    "orthopedics": _words("""
        knee hip shoulder fracture ankle spine wrist elbow bone joint leg foot ligament limp arthritis muscle neck
        ribs finger thumb toe thigh heel shin joints bones limb posture"""),
    "neurology": _words("""
        headache seizure tremor memory stroke brain nerve confusion paralysis concussion speech coma dementia
        balance coordination reflex skull nerves consciousness tingling amnesia seizures"""),
    "psychiatry": _words("""
        anxiety depression sleep panic mood stress grief trauma fear anger addiction alcohol worry suicide nightmares
        sadness despair guilt loneliness obsession paranoia isolation emotions aggression withdrawal"""),
    "dermatology": _words("""
        rash skin mole burn scar scalp hair infection nail bruise bite irritation wound scratch pigment
        tattoo stains peeling sting"""),
    "ophthalmology": _words("""
        eye vision glasses sight lens pupil blindness iris tears eyes lenses reading glare
        eyelids focus"""),
    "dentistry": _words("""
        tooth teeth jaw filling crown gum cavity dentist mouth chewing tongue root enamel bridge saliva lip plaque
        implant lips"""),
}

CLINIC = Domain(
    instruction="Read the intake note and name the department that should see the patient: {answers}.",
    cues=_DEPARTMENTS,
    weights={
        "cardiology": 25,
        "orthopedics": 20,
        "neurology": 16,
        "psychiatry": 13,
        "dermatology": 11,
        "ophthalmology": 8,
        "dentistry": 7,
    },
    openings=(
        "Patient seen this afternoon without an appointment.",
        "Referred by the family doctor after two visits.",
        "Walked in alone and was able to answer all questions.",
        "Retired teacher, lives with a partner, does not smoke.",
        "Student, no regular medication, no earlier operations.",
        "Brought in by a relative, calm and awake.",
    ),
    closings=(
        "Wants to be seen this week if possible.",
        "No fever, weight unchanged, eats well.",
        "Asked to come back sooner if it gets worse.",
        "Has tried tablets from the pharmacy without success.",
        "Letter and earlier results are in the file.",
    ),
    sentences=(
        "Main complaint today: {cue}.",
        "Family history of similar findings, mostly {cue}.",
        "The referral letter mentions {cue} and asks for advice.",
        "Reports changes since last winter, keyword {cue}.",
        "On examination attention was drawn to {cue}.",
        "Earlier records from another hospital list {cue}.",
        "Says that work has become difficult, partly because of {cue}.",
        "Partner is mainly concerned about {cue}.",
        "To be clarified: {cue}.",
    ),
    naming=(
        "The nurse on duty suggested {answer}.",
        "Was told elsewhere to ask for {answer}.",
    ),
    cue_counts=(2, 3, 4),
)

DOMAINS = {"helpdesk": HELPDESK, "clinic": CLINIC}
