"""The words of `choice`: markup, letters, clauses, and what states, hedges or denies a letter, in ten languages."""

import re

# -- markup ------------------------------------------------------------------------------------------------------------
BOX = re.compile(r"\\f?box(?:ed)?\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
TEX = re.compile(r"\\(?:text|textbf|mathrm|mathbf|bf|rm)\b\s*|\\[()\[\]]|[{}$]")
TEX_TEXT = re.compile(r"\\(?:text\w*|math\w+|bf|rm)\s*\{([^{}]*)\}")
STRUCK = re.compile(r"~~.*?~~|<(s|del)>.*?</\1>")  # crossed out
ASKED = re.compile(r"^[ \t]*Q(?:uestion)?\s*\d*\s*[:.].*\n[ \t]*A\s*:", re.MULTILINE | re.IGNORECASE)
TAG = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL | re.IGNORECASE)
DECORATION = re.compile(r"</?[a-z_]{2,}>|\\[()\[\]]|[*`$#【】《》「」『』]|__|(?<=[<\[{(\s])[<\[{](?=\w[>\]}])")
HTML = re.compile(r"<([a-z_]+)>(.*?)</\1>", re.DOTALL)
CYRILLIC = re.compile(r"(?<!\w)[АС](?=\s*(?:$|[.,;:)!\n]))")  # which look like A and C, and mean them


# -- letters -----------------------------------------------------------------------------------------------------------
# A letter in brackets or by itself; not one of "A4", "C-section", "U.S.A.", "C++", "I'm".
LETTER = r"""(?:[(\[<⟦]\s*[A-Za-z]\s*[.:]?\s*[)\]>⟧]
    |(?<![A-Za-z0-9À-ɏ+\\])(?<![A-Za-z0-9][.\-'’])[A-Za-z](?![A-Za-z0-9À-ɏ+\#\\]|['’][A-Za-z]|[.\-][A-Za-z0-9]))"""
LABEL = r"""(?:\b(?:option|choice|answer|ans|caption|sentence|statement|letter|antwort(?:möglichkeit)?|aussage|lösung
    |lettre|proposition|opci[oó]n|respuesta|alternativa|letra
    |r[ée]ponse|choix|op[cç][aã]o|resposta|risposta|opzione|вариант|ответ)
    |(?:\b(?:cevap|jawaban(?:\s+yang\s+benar)?(?:\s+adalah)?|odpowied[zź](?:\s+to)?|antwoord(?:\s+is)?)|คำตอบ(?:คือ)?)
    |đáp\s+án|उत्तर|जवाब|विकल्प|الإجابة|الجواب|الخيار
    |选项|選項|选择|選擇|選択肢|答案|보기|선택지|정답|답)"""
LABELED = re.compile(rf"{LABEL}(?:\s+(?:đúng|الصحيحة?))?(?:\s+(?:là|هي|هو))?[\s:\"']*$", re.VERBOSE | re.IGNORECASE)
OPTION = re.compile(
    r"(?:\b(?:option|choice|opci[oó]n|op[cç][aã]o|opzione|вариант)|选项|選項|選択肢|선택지)\W*$", re.IGNORECASE
)
LEAD = re.compile(
    rf"^[^\w▢]*(?:{LABEL}|(?:correct|right|final|best)\b|q(?:uestion)?\s*\d+)?[^\w▢]*$",
    re.VERBOSE | re.IGNORECASE,
)
UNREAD = re.compile(r"(?<![\w▢.'’-])[B-HJ-Z](?![\w▢'’-])")  # a letter that no rule has read
WORD = re.compile(r"\s+[A-Za-zÀ-ɏ]")  # after an "A" that is an article
_AND = r"(?:and|or|und|oder|y|o|et|ou|u|e|или|и|أو)"
JOINT = rf"""(?:(?:\bvs\b\.?|\bversus\b)|[/&、]\s*(?:and\b|or\b)?
    |,?\s*(?:or\s+)?(?:maybe|possibly|perhaps)\b|,\s*(?:and|or)\b|\b{_AND}\b|,?\s*\bbut\s+also\b
    |或者?|或是|还是|還是|和|与|與|及び|および|か|と|または|あるいは|もしくは|또는|혹은|이?나|[와과]|,(?=\s*\(?[A-Z]\)?\s*(?:[,.;/&\n]|$|{_AND}\b)))"""
ASIDE = re.compile(rf"\(\s*((?:or|oder|ou)\s+{LETTER})\s*\)", re.VERBOSE)  # "B (or C)"
GROUP = re.compile(
    rf"{LETTER}(?:,\s*{LETTER}){{2,}}(?:,?\s*\b{_AND}\s+{LETTER})?"
    rf"|{LETTER}(?:\s*{JOINT}\s*(?:(?:maybe|possibly|perhaps)\s+)?(?:{LABEL}\s*)?{LETTER})+",
    re.VERBOSE,
)
ONE = re.compile(LETTER, re.VERBOSE)
NUMBERS = {
    word: index
    for index, words in enumerate(
        (
            "1 one first 1st 一 첫 erste primera première первый",
            "2 two second 2nd 二 두 zweite segunda deuxième seconde второй",
            "3 three third 3rd 三 세 dritte tercera troisième третий",
            "4 four fourth 4th 四 네 vierte cuarta quatrième четвертый четвёртый",
            "5 five fifth 5th 五 다섯 fünfte quinta cinquième пятый",
        )
    )
    for word in words.split()
}
_NUMBER = "|".join(sorted(NUMBERS, key=len, reverse=True))
NUMBERED = re.compile(
    rf"""\b(?:option|choice|caption|sentence|statement|選択肢|선택지)\s*[:\#]?\s*({_NUMBER})\b(?!\.?\d)
    |\b({_NUMBER})n?\s+(?:option|choice|answer|caption|sentence|statement|antwort|aussage|opci[oó]n|respuesta|r[ée]ponse
        |вариант|ответ)\b
    |^\W*(?:it['’]s\s+|it\s+is\s+|the\s+answer\s+is\s+)?the\s+({_NUMBER})\s+one\W*$
    |第\s*({_NUMBER})\s*[个個]?(?:选项|選項|项|項|答案)|({_NUMBER})(?:番目|つ目)の(?:選択肢|答え)|({_NUMBER})\s*번째""",
    re.VERBOSE | re.IGNORECASE,
)
LISTED = re.compile(r"^\s*[-•]?\s*(?:[(\[]([A-Z])[)\]]|([A-Z])(?:[.):]|\s+[-–—]))\s*\S.*$", re.MULTILINE)
# A verdict about one option in a line, or between the others: "B: correct, she …", "A ✗ B ✓".
_RIGHT = r"(?:correct|right|true|yes|richtig)\b|[✓✔✅]|正确"
_WRONG = r"(?:incorrect|wrong|false|no|falsch)\b|[✗✘❌✖]|错误"
TABLE_HEAD = re.compile(r"^.*\|.*\n[ \t]*\|?[-:| \t]+\|[-:| \t]*$", re.MULTILINE)
JUDGED = re.compile(
    rf"(?:^|(?<=[\s,;|{{]))\W*?(?:\d+[.)]\s*)?(?:option\s+)?\(?([A-Z])\)?['\"]?[\s:.)=|–—-]*(?:({_RIGHT})|{_WRONG})",
    re.IGNORECASE,
)
MARKS = re.compile(r"(?<![A-Za-z(])([A-Z])()[:)](?=\s)")
MARK = re.compile(r"\W*[A-Za-z](?:[.:)\]]|\W*$)")  # a letter alone, or in front of a text

# -- clauses -----------------------------------------------------------------------------------------------------------
SENTENCE_END = re.compile(r"\.(?=[\s\"')\]]|$)|[!?;\n。]+")
CLAUSE_END = re.compile(
    rf"""[,、—–]|(?==>|[→⇒])|\s-+\s|\((?!\s*[A-Za-z]\s*[.:]?\s*\))|(?<!\([A-Za-z])(?<![^A-Za-z][A-Za-z])(?<!^[A-Za-z])\)
    |(?=\b(?:because|since|as|while|whereas|although|though|but(?!\s+also)|however|so|therefore|thus|hence|which|rather\s+than
        |instead\s+of|than|unlike|except|weil|denn|aber|(?<!but\s)also|sondern|sino|pero|porque|mais|(?<=\s(?-i:[B-Z])\s)car|но|потому|بل)\b)
    |:(?=\s+(?:the|la|die)\s+(?:\w+\s+)?(?:answer|respuesta|r[ée]ponse|antwort)\b)
    |(?=\b(?:over|(?:and\s+|und\s+|y\s+|et\s+)?(?:not|nicht|no|pas))\s+(?:{LABEL}\s*)?{LETTER})
    |(?=\band\s+(?:{LABEL}\s*)?{LETTER}\s+(?:is|was|has|shows|does|seems)\b)
    |(?=因为|因為|但|所以|因此|故|而是)|(?<=ではなく)|(?<=じゃなく)|(?<=아니라)|(?<=아니고)|(?<=틀렸고)|(?<=틀리고)""",
    re.VERBOSE | re.IGNORECASE,
)
EXCEPTING = re.compile(r"\b(?:any|every)thing\s+but\b|\ball\s+but\b", re.IGNORECASE)
# "All but C are wrong": C is right.
ONLY_RIGHT = re.compile(
    rf"\b(?:all|every\w*)\b[^.,;]{{0,30}}?\b(?:but|except(?:\s+for)?)\s+({LETTER})[^.;]{{0,40}}?"
    r"\b(?:wrong|incorrect|false|excluded|ruled\s+out|eliminated|impossible)\b",
    re.VERBOSE | re.IGNORECASE,
)
PREFERRED = re.compile(r"(prefer\w*\s+\S+\s+)to\b", re.IGNORECASE)
IDIOMS = re.compile(
    r"\bat\s+least\b|\b(?:no|without(?:\s+an?y?)?)\s+(?:doubt|question|problem)\b|\bnot\s+only\b"
    r"|\bif\s+(?:i|we|you)\s+(?:had|have|must|were)\s+to\b(?:\s+\w+)?|\bif\s+(?:forced|anything)\b"
    r"|\b\d+\s*%\s*(?:sure|certain|confident)\b|\bthat['’]s\s+right\b(?=\s*[,.!])|\ball\s+right\b|\bright\s+(?:now|away|after|before|here)\b"
    r"|毫无疑问|毫無疑問|不用说|間違いなく|sans\s+(?:aucun\s+)?doute|ohne\s+Zweifel|sin\s+duda|без\s+сомнения",
    re.IGNORECASE,
)
AFFIRMED = re.compile(  # denials of a mistake
    r"没有?错|沒有?錯|(?<!无)无误|[にで](?:は)?(?:間違い|違い|相違)は?(?:ありません|ない|無い)|틀림\s*없\w*"
)
UNDECIDED = re.compile(r"\b(?:can\s?not|can['’]t|unable\s+to)\s+(?:decide|choose|pick)\b|\bundecided\b", re.IGNORECASE)
SPOKEN = re.compile(r"\b(?:says?|said|reads?|shouts?|asks?|thinks?)\W*$", re.IGNORECASE)  # in the video
# "Plan B", "room: B": letters that name something else.
NAMED = re.compile(
    r"\b(?:plan|team|person|player|points?|room|building|camera|scene|frame|figure|section|part|type|class|grade|group"
    r"|vitamins?|hepatitis|gate|track|line|street|exit|zone|level|panel|image|picture|clip|video|actor|man|woman"
    r"|speaker|character|step|row|column|note|key|chord|model|version|channel|rating|score|size|shelf|position|area)\W*$"
    r"|\b(?:mr|mrs|ms|dr)\.?\s+$",
    re.IGNORECASE,
)
CONDITION = re.compile(
    r"^\W*(?:were|had|should)\s+(?:he|she|it|they|there|the|this|that|we|i|you)\b"
    r"|\b(?:if|unless|suppos\w+|assum\w+|wenn|falls|si|se\s+(?:fosse|for)|если)\b|如果|假如|若|もし|만약",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"\b(?:might|may|maybe|perhaps|possibly|could|thought|initially|at\s+first|seemed|looked|tempting|vielleicht|könnte"
    r"|podr[ií]a|pourrait)\b"
    r"|可能|也许|也許|かもしれ",
    re.IGNORECASE,
)
UNREAL = re.compile(
    r"\bwould\s+(?:be\b[^.;]*,\s*but\b|have(?!\s+to\s+be)|need|require|imply|mean|only)\b"
    r"|\b(?:some|others|people|many|one)\s+(?:might|may|would|could)\b"
    r"|\byou(?:['’]d|\s+(?:might|may|would|could))\s+think\b",
    re.IGNORECASE,
)
DENIAL = re.compile(
    r"""\b(?:not|no|non|none|neither|nor|never|nothing|nobody|hardly|barely|far\s+from|against|contradict\w*|poor|bad
    |seems\s+off|cannot|(?:is|are|was|were|do|does|did|ca|could|would|should|has|have|had|wo)n['’]?t|doubt\w*|wrong
    |incorrect\w*|false|inaccurate|invalid
        |least|worst|second[\s-]best|alternative(?=\s*[:=]|\s+(?:answer|choice|option)\b)|runners?[\s-]up
        |(?:second|2nd)\s+(?:choice|guess)(?=\s*[:=]|\s+(?:is|would)\b)|improbable
        |(?:first|initial|previous|earlier|original)\s+(?:answer|guess|thought|impression)|unlikely|implausible|impossible|(?:ruled?|ruling|is|are)\s+out
        |eliminat(?:e[sd]?|ing)|exclud\w+|reject\w*|dismiss\w*
        |distractors?|mistake\w*|except|unlike|rather\s+than|instead\s+of|than|lacks?|fails?
        |nicht|kein\w*|falsch\w*|weder|ausgeschlossen|ausschließen|scheidet|descart\w+|exclure|exclu[es]?|élimin\w+
        |исключ\w+|отпадает|отклон\w+|отверг\w+|отбрас\w+|ni|fals[ao]s?|pas|faux|fausse\w*|n['’]est|não|nao|nem|errad[oa]s?|incorret\w*
        |sbagliat\w*|err[oó]ne\w*|erroné\w*|không|sai|ليس\w*|لا|لم|غير|خطأ|خاطئ\w*|errat[oa]|scorrett\w*|né|не|ни|неправ\w*|невер(?:ен|н)\w*|ошиб\w*)\b
    |नहीं|गलत|[别別勿](?=选|選)|不(?!过|過|仅|僅|但|错|錯)|^\s*over\b|没|沒|并非|非(?!常)|错|錯|误|誤|排除|違|間違|な[いく]|ません|없|못하|못합|아니|아닙|아닌|❌|✗|✘|👎|않|틀린|틀렸|틀립|오답""",
    re.VERBOSE | re.IGNORECASE,
)
REFUSAL = re.compile(
    r"""\W*(?:(?:that|this|it|which)?\W*(?:is|was|['’]s)\s+)?(?:no|nope|wrong|incorrect|false
    |falsch|nein|faux|fausse|falso|falsa|errad[oa]|неправда|неверно|нет|错误?|不对|不正确)\W*""",
    re.VERBOSE | re.IGNORECASE,
)
# What comes before a letter that is stated, and what may stand between. A line of words per language.
NOUN = r"""\b(?:answer|ans|choice|option|one|guess|result|prediction|output|correct|selected|final(?:_answer)?
    |(?:to\s+)?sum(?:mary|\s+up)|solution|selection|pick|response|conclusion|correction|edit|verdict|closest|best\s+(?:match|fit)|most\s+(?:likely|plausible|probable|accurate|appropriate|suitable)
    |antwort|l[öo]sung|richtig|korrekt
    |respuesta|opci[oó]n|alternativa|letra|correcta
    |r[ée]ponse|choix
    |resposta|op[cç][aã]o|risposta|opzione
    |ответ|вариант)"""
IS = r"""(?:is|are|was|be|being|remains|ist|lautet|wäre|es|ser[ií]a|est|serait|é|è|это)\b"""
# What is stated is the object of these, "I choose B".
_CHOOSE = r"""(?:choos\w+|chose|pick\w*|select\w*|say|i\s+said|guess|think|believe|conclude|tick|mark|circle|enter
    |write|meant?|take|prefer\w*|favou?rs?|answer\w*\s+with
    |(?:go(?:ing)?|went|stick|stay)\s+(?:with|for)|(?:opt\w*|vot(?:e|ing)|settle)\s+(?:for|on)|vote|(?:bet|money\s+is)\s+on
    |lock(?:ing)?\s+in
    |lean(?:s|ing)?(?:\s+towards?)?|(?:i['’]d|i['’]ll|i\s+would|i\s+will)\s+put|put\s+me\s+down\s+for
    |makes?\s+(?:it|that)|stand\s+by|return
    |(?:that|this|which|elimination)\s+(?:leaves|gives|yields)(?:\s+(?:us|me))?(?:\s+with)?
    |leaving(?:\s+(?:us|me)\s+with)?|left\s+with
    |wähle|nehme|sage|denke|glaube|bin\s+für|handelt\s+sich\s+um|am\s+ehesten|tippe\s+auf|entscheide\s+mich\s+für
    |meiner\s+meinung\s+nach|bleibt
    |elijo|elegir[ií]a|escojo|escoger[ií]a|selecciono|dir[ií]a(?:\s+que)?|creo\s+que(?:\s+es)?|pienso\s+que(?:\s+es)?
    |me\s+quedo\s+con|(?:opto|voto|inclino)\s+por|elecci[oó]n\s+es|(?:debe|tiene\s+que)\s+ser|parece\s+(?:que\s+es|ser)
    |choisis|choisirais|s[ée]lectionne|dirais|pense\s+que|opte\s+pour|s['’]agit\s+de|doit\s+être
    |escolho|scelgo|выбираю|выбрала?|думаю|считаю|остаётся|остается|я\s+за|правильно)"""
_THEREFORE = r"""(?:so|thus|hence|therefore|but|also|somit|daher|folglich|sondern|aber|sino|pero|luego|mais|donc|بل|а
    |значит|поэтому|следовательно)"""
_IT_IS = r"""(?:(?:it|that|this|which)(?:['’]s|['’]d\s+be|\s+(?:is|must\s+be|has\s+to\s+be|should\s+be|would\s+be
    |will\s+be|seems\s+to\s+be))
    |(?:must|should|ha(?:s|ve)\s+to|got\s+to|can\s+only)\s+be|gotta\s+be|(?:turns\s+out|appears?|seems?)\s+to\s+be
    |(?:looks?|seems?)\s+like|es\s+ist|das\s+ist|ist\s+es|c['’]est|(?:что\s+)?это)"""
STATED_BEFORE = re.compile(
    rf"""(?:(?<![A-Za-z])(?:{NOUN}\b(?:\s+(?:to|for|of|here|that|which|would|should|based|from|in|among|out|according
    |option|choice|letter|therefore|i|you|we|you['’]re)
        \b[^:=]{{0,60}}?|[^:=]{{0,14}}?)|letter\s+)(?:\b{IS}|["'’]?\s*[:=→>])|\b{NOUN}\s*["']?\s*[-–—]+
    |^\W*(?:{_THEREFORE}\s+)?(?:(?:is|es|ser[ií]a|est|ist|è|это)\b(?=[^\w]*$)|(?:es|è|é)\s+(?:la|el|il|a)\b)|\bwhat\b[^:=]{{0,40}}\bis
    |\b(?:{_IT_IS}|{_THEREFORE}|{_CHOOSE})
    |=>|[→⇒]|答案|答え|正解|正しいのは|適切なのは|[选選是は]|倾向于?|(?<![因以])[为為]|择|擇|정답[은이]?|답[은이]?|верно)[\s:"'“”‘(]*$""",
    re.VERBOSE | re.IGNORECASE,
)
FILLER = re.compile(
    rf"""(?:[\s:"'“”’>\-–—]|\b(?:definitely|clearly|obviously|probably|(?:most|more)\s+likely|likely|actually|really|now|only
    |just|maybe|possibly|perhaps|therefore|thus|indeed|simply|surely|certainly|undoubtedly|of\s+course|clairement
        |wahrscheinlich|vermutlich|wohl|nur|eindeutig|zweifellos|solo|sólo|\w{{3,}}mente|\w{{3,}}[ae](?:l|ir)ement
        |probablement|certainement|seule?|только|наверное|вероятно
        |the|a\b(?=\s+{LABEL})|(?<=é\s)a\b|la|el|le|l['’]|die|der|das|number|correct|right|best)\b|{LABEL}|\d+\s*%|おそらく|恐らく|たぶん|多分
        |よって|したがって|大概|也许|아마도?|따라서|그러므로)+$""",
    re.VERBOSE | re.IGNORECASE,
)
_FITS = r"(?:fits|matches|describes|depicts|captures|reflects|represents|summari[sz]es|answers)"
ANSWER_IS = re.compile(rf"{NOUN}\b[^:=.\n]{{0,14}}?(?:\b{IS}|[:=])", re.VERBOSE | re.IGNORECASE)
STATED_AFTER = re.compile(
    rf"""["'”’)]?\s*(?:option|choice|answer|选项|選項|项|項|번)?\s*(?:
    (?:is|seems|appears|looks|remains|must\s+be|has\s+to\s+be|should\s+be|would\s+be|will\s+be|ist|es|est|é|è
    |это)\s+(?:to\s+be\s+)?
        (?:(?:clearly|definitely|obviously|therefore|thus|probably|indeed|also|the|an?|my|la|le|die|der|only|one|most
        |more|single|option|answer|choice|antwort|respuesta|r[ée]ponse|resposta|risposta)\s+)*
        (?:correct|right(?=\s*(?:$|:|answer|option|choice|one\b|here|to\s+me))|accurate|best|true|answer|better|it\s*$
        |one\s*$|likely|plausible|appropriate|suitable|fitting|consistent|supported
        |what\b|(?:final\s+)?(?:pick|choice|answer|vote|guess)\b|the\s+(?:one\b|way\s+to\s+go)
        |one\s+(?:that\s+is\s+)?shown\b
        |richtig|richtige|beste|korrekt|correct[ao]|mejor|correcte|bonne|juste|exacte|corret[ao]|cert[ao]|corrett[ao]
        |giust[ao])\b
        (?!\s+(?:about|that|in|on|only|when|regarding|for)\b)
    |is\s+the\s+only\s+(?:option|choice|answer|one|candidate)\b|(?:the|die|la)\s+(?:correct|right|best|richtige|beste
    |bonne)\s+(?:answer|option|choice|antwort|r[ée]ponse)\b
    |{_FITS}\b.*\bbest\b|(?:best|accurately|correctly|clearly|exactly|perfectly)\s+{_FITS}\b
    |{_FITS}(?:\s+(?:what|the\s+(?:video|clip|scene|footage|question|evidence|action|frames?))\b|\s*$)
    |(?:fits|wins|beats|sums\s+it\s+up|works|holds|applies|happens|occurs|remains|is\s+left|stimmt|passt
    |trifft\s+zu)\s*$|fits\b|wins\b
    |best\s*$|it\s+(?:is|must\s+be|has\s+to\s+be)\s*$|to\s+be\s+(?:the\s+)?(?:correct|right|best)|(?:i|we)\s+(?:think
    |guess|believe|suppose|reckon)\s*$
    |wählen|nehmen|sagen|sein\s*$|(?:korrekt|richtig)\s*$|gets\s+my\s+vote
    |(?:for\s+sure|all\s+the\s+way|without\s+question|most\s+likely|probably|definitely|certainly|to\s+me)\s*$
    |\W*(?:правильн|верн|подходит)
    |(?:是|最|为|為|が|は)?\s*(?:最も?|更|一番)?(?:正确|正確|对(?=的|[\s.]*$)|對(?=的|[\s.]*$)|正しい|正解|合适|合適|合理|符合|准确|準確|贴切|恰当|適切|妥当|ふさわしい
    |です|だ|[にと]なります|でしょう|と考え|と思|有可能)
    |を選|[을를]\s*(?:선택|고르)|입니다|이다|이에요|예요|요\s*$|(?:일|인)\s*것|로\s*하|(?:이?라고)\s*(?:생각|봅)|[가이은는]\s*(?:가장\s*)?(?:정답|맞|옳|적절|적합
    |알맞))""",
    re.VERBOSE | re.IGNORECASE,
)
# A letter at the end of a clause is mentioned after these, and after others may name anything ("vitamin C", "team B").
SHOWS = re.compile(
    r"\b(?:does|do|shows?|depicts|describes|match(?:es)?|supports|indicates|suggests"
    r"|(?:points?|corresponds?|leads?)\s+to|consistent\s+with)\s*$",
    re.IGNORECASE,
)
VERB = re.compile(
    r"[\"'”’)]?\s+(?:is|was|has|shows?|does|can|could|would|will|seems|appears|describes|depicts|says"
    r"|matches|must)(?:n['’]t|not)?\b",
    re.IGNORECASE,
)

DANGLING = re.compile(r"\s*(?:or|and)(?:\s+maybe)?\s*", re.IGNORECASE)
NAME = re.compile(r"[A-Z]\.\s+(?!(?:Correct|Right|True|Yes|Definitely|Clearly)\b)([A-Z][a-z]+)\.?")  # "B. Jones"
CJK = re.compile(r"[\u3040-\ud7a3]+")
# Before the words of an option: "he" may be "the man" in a reply, and "a cat" "no cat" or "the cat".
PRONOUN = re.compile(r"^( )(?:he|she|it|they) (?=\S+ \S)|^[他她它]们?(?=\S\S)")
ARTICLE = re.compile(r"^( )(?:ein|eine|einen|der|die|das|un|una|une|el|la|le|les|los|las) (?=\S)")
SEEN = re.compile(
    r"\s*(?:is|can\s+be)\s+(?:\w+ly\s+)?(?:shown|visible|seen|depicted|displayed|present)\b", re.IGNORECASE
)
INITIAL = re.compile(r"\.[ \t]*▢\.[ ]+[A-Z][a-z]")  # "Dr. C. Smith", the letter covered
