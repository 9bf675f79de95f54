"""The words of `choice`: markup, letters, clauses, and what states, hedges or denies a letter, in ten languages."""

import re

# -- markup ------------------------------------------------------------------------------------------------------------
BOX = re.compile(r"\\f?box(?:ed)?\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
TEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|bf|rm)\b\s*|\\[()\[\]]|[{}$]")
TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
DECORATION = re.compile(r"\\[()\[\]]|[*`$#【】《》「」『』]|__|(?<=[<\[{(\s])[<\[{](?=\w[>\]}])")
HTML = re.compile(r"<([a-z_]+)>(.*?)</\1>", re.DOTALL)
CYRILLIC = re.compile(r"(?<!\w)[АС](?=\s*(?:$|[.,;:)!\n]))")  # which look like A and C, and mean them


# -- letters -----------------------------------------------------------------------------------------------------------
# A letter in brackets or by itself; not one of "A4", "C-section", "U.S.A.", "C++", "I'm".
LETTER = r"""(?:[(\[<⟦]\s*[A-Za-z]\s*[.:]?\s*[)\]>⟧]
    |(?<![A-Za-z0-9À-ɏ+\\])(?<![A-Za-z0-9][.\-'’])[A-Za-z](?![A-Za-z0-9À-ɏ+\#\\]|['’][A-Za-z]|[.\-][A-Za-z0-9]))"""
LABEL = r"""(?:\b(?:option|choice|answer|ans|caption|sentence|letter|antwort|opci[oó]n|respuesta|alternativa|letra
    |r[ée]ponse|choix|op[cç][aã]o|resposta|risposta|opzione|вариант|ответ)
    |选项|選項|选择|選擇|選択肢|答案|보기|선택지|정답|답)"""
LABELLED = re.compile(rf"{LABEL}[\s:\"']*$", re.VERBOSE | re.IGNORECASE)
LEAD = re.compile(
    rf"^[^\w▢]*(?:{LABEL}|(?:correct|right|final|best)\b|q(?:uestion)?\s*\d+)?[^\w▢]*$",
    re.VERBOSE | re.IGNORECASE,
)
WORD = re.compile(r"\s+[A-Za-zÀ-ɏ]")  # after an "A" that is an article
_AND = r"(?:and|or|und|oder|y|o|et|ou)"
JOINT = rf"""(?:[/&、]\s*(?:and\b|or\b)?
    |,?\s*(?:or\s+)?(?:maybe|possibly|perhaps)\b|,\s*(?:and|or)\b|\b(?:{_AND}|u|e|или|и)\b
    |或者?|和|与|與|か|と|또는|,(?=\s*\(?[A-Z]\)?\s*(?:[,.;/&\n]|$|{_AND}\b)))"""
GROUP = re.compile(rf"{LETTER}(?:\s*{JOINT}\s*(?:(?:maybe|possibly|perhaps)\s+)?(?:{LABEL}\s*)?{LETTER})+", re.VERBOSE)
ONE = re.compile(LETTER, re.VERBOSE)
NUMBERED = re.compile(r"\b(?:option|choice|caption|sentence)\s*[:#]?\s*([1-9])\b(?![.\d])", re.IGNORECASE)
LISTED = re.compile(r"^\s*[-•]?\s*(?:[(\[]([A-Z])[)\]]|([A-Z])(?:[.):]|\s+[-–—]))\s*\S.*$", re.MULTILINE)
MARKS = re.compile(r"(?<![A-Za-z(])([A-Z])()[:)](?=\s)")
MARK = re.compile(r"\W*[A-Za-z](?:[.:)\]]|\W*$)")  # a letter alone, or in front of a text

# -- clauses -----------------------------------------------------------------------------------------------------------
SENTENCE_END = re.compile(r"\.(?=[\s\"')\]]|$)|[!?;\n。]+")
CLAUSE_END = re.compile(
    rf"""[,、—–]|\s-+\s|\((?!\s*[A-Za-z]\s*[.:]?\s*\))|(?<!\([A-Za-z])(?<![^A-Za-z][A-Za-z])(?<!^[A-Za-z])\)
    |(?=\b(?:because|since|as|while|whereas|although|though|but|however|so|therefore|thus|hence|which|rather\s+than
        |instead\s+of|than|unlike|except|weil|denn|aber|sondern|sino|pero|porque|mais|car|но|потому)\b)
    |(?=\b(?:over|and\s+not|not)\s+(?:{LABEL}\s*)?{LETTER})
    |(?=\band\s+(?:{LABEL}\s*)?{LETTER}\s+(?:is|was|has|shows|does|seems)\b)
    |(?=因为|因為|但|所以|因此|故|而是)|(?<=ではなく)|(?<=じゃなく)|(?<=아니라)|(?<=아니고)""",
    re.VERBOSE | re.IGNORECASE,
)
EXCEPTING = re.compile(r"\b(?:any|every)thing\s+but\b|\ball\s+but\b", re.IGNORECASE)
PREFERRED = re.compile(r"(prefer\w*\s+\S+\s+)to\b", re.IGNORECASE)
IDIOMS = re.compile(
    r"\bat\s+least\b|\b(?:no|without(?:\s+an?y?)?)\s+(?:doubt|question|problem)\b|\bnot\s+only\b"
    r"|\bif\s+(?:i|we|you)\s+(?:had|have|must|were)\s+to\b(?:\s+\w+)?|\bif\s+(?:forced|anything)\b",
    re.IGNORECASE,
)
CONDITION = re.compile(
    r"\b(?:if|unless|suppos\w+|assum\w+|wenn|falls|si|se|если)\b|如果|假如|若|もし|만약", re.IGNORECASE
)
HEDGE = re.compile(
    r"\b(?:might|may|maybe|perhaps|possibly|could|thought|initially|at\s+first|seemed|looked|tempting|vielleicht)\b"
    r"|可能|也许|也許|かもしれ",
    re.IGNORECASE,
)
UNREAL = re.compile(r"\bwould\s+(?:have|need|require|imply|mean|only)\b", re.IGNORECASE)
DENIAL = re.compile(
    r"""\b(?:not|no|non|none|neither|nor|never|cannot|(?:is|are|was|were|do|does|did|ca|could|would|should|has|have|had|wo)n['’]?t|doubt\w*|wrong|incorrect\w*|false|inaccurate|invalid
        |least|worst|second[\s-]best|improbable|unlikely|implausible|impossible|(?:ruled?|ruling|is|are)\s+out|eliminat\w+|exclud\w+|reject\w*|dismiss\w*
        |distractors?|mistake\w*|except|unlike|rather\s+than|instead\s+of|than|lacks?|fails?
        |nicht|kein\w*|falsch\w*|weder|ni|fals[ao]s?|pas|faux|fausse\w*|n['’]est|não|nao|nem|errad[oa]s?|incorret\w*
        |sbagliat\w*|errat[oa]|scorrett\w*|né|не|ни|неправ\w*|неверн\w*|ошиб\w*)\b
    |不(?!过|過|仅|僅|但|错|錯)|^\s*over\b|没|沒|并非|非(?!常)|错|錯|误|誤|排除|違|間違|な[いく]|ありません|아니|아닙|아닌|❌|✗|✘|👎|않|틀린|틀렸|틀립|오답""",
    re.VERBOSE | re.IGNORECASE,
)
REFUSAL = re.compile(
    r"\W*(?:(?:that|this|it|which)?\W*(?:is|['’]s)\s+)?(?:no|nope|wrong|incorrect|false)\W*", re.IGNORECASE
)
# What comes before a letter that is stated, and what may stand between.
NOUN = r"""\b(?:answer|ans|choice|option|one|guess|result|prediction|output|correct|selected|final(?:_answer)?
    |(?:to\s+)?sum(?:mary|\s+up)|solution|selection|pick|response|conclusion|verdict|antwort|l[öo]sung|respuesta
    |opci[oó]n|alternativa|letra|r[ée]ponse|choix|resposta|op[cç][aã]o|risposta|opzione|ответ|вариант)"""
IS = r"""(?:is|are|was|be|being|remains|ist|lautet|wäre|es|ser[ií]a|est|serait|é|è|это)\b"""
STATED_BEFORE = re.compile(
    rf"""(?:(?<![A-Za-z])(?:{NOUN}\b(?:\s+(?:to|for|of|here|that|which|would|should|based|from|in|among|out|according|option|choice|letter|therefore|i)
        \b[^:=]{{0,60}}?|[^:=]{{0,14}}?)|letter\s+)(?:\b{IS}|["'’]?\s*[:=→>])|\b{NOUN}\s*["']?\s*[-–—]+
    |\b(?:it|that|this)(?:['’]s|\s+(?:is|must\s+be|has\s+to\s+be|should\s+be|would\s+be|will\s+be|seems\s+to\s+be))
    |\b(?:must|should|has\s+to|can\s+only)\s+be|\banswer\w*\s+with|\b(?:so|thus|hence|therefore|but|sondern|sino|mais|а)
    |\b(?:choos\w+|chose|pick\w*|select\w*|sa(?:y|ys|id)|guess|think|mean|take|es\s+ist|prefer\w*|favou?r|go(?:ing)?\s+(?:with|for)|went\s+with|opt\w*\s+for|vote\s+for|settle\s+on
        |wähle|nehme|elijo|escojo|selecciono|choisis|s[ée]lectionne|escolho|scelgo|выбираю|c['’]est)
    |=>|[→⇒]|答案|答え|正解|[选選是は]|(?<![因以])[为為]|择|擇|정답[은이]?|답[은이]?)[\s:"'“”‘(]*$""",
    re.VERBOSE | re.IGNORECASE,
)
FILLER = re.compile(
    rf"""(?:[\s:"'“”’>\-–—]|\b(?:definitely|clearly|obviously|probably|(?:most|more)\s+likely|likely|actually|now|only|maybe|possibly|perhaps|therefore|thus|indeed|simply|surely
        |the|a\b(?=\s+{LABEL})|la|el|le|l['’]|die|der|das|number|correct|right|best)\b|{LABEL})+$""",
    re.VERBOSE | re.IGNORECASE,
)
STATED_AFTER = re.compile(
    r"""["'”’)]?\s*(?:option|choice|answer|选项|選項|项|項|번)?\s*(?:
    (?:is|seems|appears|looks|remains|must\s+be|has\s+to\s+be|should\s+be|would\s+be|will\s+be|ist|es|est|é|è|это)\s+(?:to\s+be\s+)?
        (?:(?:clearly|definitely|obviously|therefore|thus|probably|indeed|also|the|an?|my|la|le|die|der|only|one|most|more|single|option|answer|choice|antwort|respuesta|r[ée]ponse|resposta|risposta)\s+)*
        (?:correct|right(?=\s*(?:$|answer|option|choice|one\b|here))|accurate|best|true|answer|better|it\s*$|one\s*$|likely|plausible|appropriate|suitable|fitting|consistent|supported
        |richtig|korrekt|correct[ao]|mejor|correcte|bonne|juste|exacte|corret[ao]|cert[ao]|corrett[ao]|giust[ao])\b
        (?!\s+(?:about|that|in|on|only|when|regarding|for)\b)
    |(?:best\s+)?(?:fits|matches|describes|answers)\b.*\bbest\b|best\s+(?:fits|matches|describes|answers)\b|fits\b|wins\b
    |best\s*$|it\s+is\s*$|to\s+be\s+(?:the\s+)?(?:correct|right|best)|wählen|nehmen
    |\W*(?:правильн|верн)
    |(?:是|最|为|為|が|は)?\s*(?:最)?(?:正确|正確|对的|對的|正しい|正解|合适|合理|符合|です|だ)|を選|[을를]\s*(?:선택|고르)|입니다|이다|이에요|[가이은는]\s*(?:정답|맞|옳))""",
    re.VERBOSE | re.IGNORECASE,
)
# A letter at the end of a clause is mentioned after these, and after others may name anything ("vitamin C", "team B").
SHOWS = re.compile(
    r"\b(?:does|do|shows?|depicts|describes|match(?:es)?|supports|indicates|suggests"
    r"|(?:points?|corresponds?|leads?)\s+to|consistent\s+with)\s*$",
    re.IGNORECASE,
)
VERB = re.compile(
    r"[\"'”’)]?\s+(?:is|was|has|shows?|does|can|could|would|will|seems|appears|describes|depicts|says|matches|must)(?:n['’]t|not)?\b",
    re.IGNORECASE,
)

DANGLING = re.compile(r"\s*(?:or|and)(?:\s+maybe)?\s*", re.IGNORECASE)
INITIAL = re.compile(r"\.[ \t]*▢\.[ ]+[A-Z][a-z]")  # "Dr. C. Smith", the letter covered
