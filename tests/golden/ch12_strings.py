"""The strings that ch12_tokenizers.py tokenizes: 25 of each of eight kinds, 200 in all."""

ENGLISH = """The quick brown fox jumps over the lazy dog.
It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.
don't can't won't I'll we've they're she'd o'clock rock'n'roll
DON'T SHOUT, PLEASE! I'LL STAY CALM.
co-operation, re-enter, e-mail, twenty-first-century
naïve café façade résumé Zoë coöperate
Dr. Smith et al. (1999) found p < 0.05; see Fig. 3a.
"Quoted," he said, 'twice' — and then… nothing.
“Curly quotes,” ‘single ones,’ and «guillemets».
https://example.org/a/b?c=d&e=f#g and user@example.org
antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis
CamelCaseWords and snake_case_words and SCREAMING_SNAKE
supercalifragilistic  two  spaces   three
(parentheses) [brackets] {braces} <angles>
A, B; C: D. E! F? G/H\\I|J
#hashtag @mention $dollar %percent ^caret &amp; *star*
the The THE tHe
mr mrs ms dr prof
Straße, Größe, Übermut, ß ẞ
El niño comió piñas; ¿dónde está? ¡Allí!
Les élèves français ont mangé à Noël. L'été, c'est l'œuvre.
Привет, мир! Как дела?
Γειά σου Κόσμε, άλφα βήτα
مرحبا بالعالم، كيف حالك؟
नमस्ते दुनिया हिन्दी""".split("\n")

CHINESE = """你好，世界！
今天天气很好，我们去公园散步吧。
深度求索是一家人工智能公司。
请把下面的句子翻译成英文：“学而时习之，不亦说乎？”
中华人民共和国成立于一九四九年十月一日。
我有3个苹果和25个橘子，一共28个水果。
这是一个混合English和中文的sentence。
《红楼梦》是中国古典四大名著之一。
繁體中文：臺灣的夜市非常熱鬧。
１２３４５ＡＢＣａｂｃ！？
。，、；：？！“”‘’（）《》【】—…
人工智能机器学习深度学习神经网络
  中文 前后 有 空格  
第一行
第二行

第四行
日本語のテキスト：ひらがなとカタカナ。
東京タワーは333メートルです。
こんにちは、世界！ﾊﾝｶｸ
안녕하세요, 세계! 한국어 문장입니다.
龘靐齉爩 生僻字 㐀㐁 𠀀𠀁
北京2008年奥运会，伦敦2012年。
价格：￥99.99（含税）
微信号：abc_123，电话：010-12345678
甲乙丙丁戊己庚辛壬癸
你好你好你好吗？？？！！！"""
CHINESE = CHINESE.replace("第一行\n第二行\n\n第四行", "第一行\\n").split("\n")
CHINESE = [s.replace("\\n", "\n第二行\n\n第四行") for s in CHINESE]
CHINESE.append("第 １ 章　全角空格　在这里")

CODE = [
    "def f(x):\n    return x + 1\n",
    "for i in range(10):\n\tprint(i)\n\n\n",
    "fn main() {\n    println!(\"{}\", 1u8 as char);\n}\n",
    "int main(void) { return 0; }\r\n// comment\r\n",
    "#include <stdio.h>\n#define MAX(a, b) ((a) > (b) ? (a) : (b))\n",
    "if (a && b || !c) { x <<= 2; y >>>= 3; z ??= null; }",
    "const f = async ({a, b = 1, ...rest}) => `${a}-${b}`;",
    "SELECT * FROM t WHERE a = 'b' AND c IN (1, 2, 3);",
    "<div class=\"a b\"><p>text &amp; more</p></div>",
    "{\"key\": [1, 2.5, -3e-7, true, null], \"nested\": {\"a\": \"b\\n\"}}",
    "        deep indentation\n                deeper\n",
    "x=y==z!=w<=v>=u<>t:=s->r=>q|>p",
    "a[i][j] += b[j][i] * c[i + j - 1];",
    "/* block\n * comment\n */",
    "lambda x, *args, **kwargs: (yield x)",
    "import numpy as np\nA = np.zeros((3, 3))\nA[:, 0] = 1\n",
    "$ git commit -m 'fix: #123' && git push --force-with-lease",
    "\\begin{equation} \\frac{\\partial L}{\\partial w} = 0 \\end{equation}",
    "template<typename T> auto f(T&& t) -> decltype(t.g());",
    "0xDEADBEEF 0b1010 0o755 1_000_000 1e-10 .5 5.",
    "# Title\n\n- item\n- [ ] task\n\n```python\nprint('hi')\n```\n",
    "key: value\nlist:\n  - a\n  - b: c\n",
    "\tif\t\ttabs\t\t\tthen\n",
    "_private __dunder__ $var @decorator #pragma",
    "function(){return!0}();;;",
]

DIGITS = [
    "0", "7", "42", "123", "1234", "12345", "123456", "1234567890", "3.14159265358979",
    "1,234,567.89", "1 2 3 4 5", "12 345 678", "-273.15", "+49 30 1234567", "10^-9",
    "2026-11-24T20:22:03Z", "99%", "1/2 + 1/3 = 5/6", "$1,000", "No. 5, No.5, 5th",
    "٣٤٥ १२३ ４５６", "½ ¼ ¾ ² ³ ⁴ ₁", "ⅣⅤⅥ ①②③", "a1b22c333d4444", "000111000",
]

EMOJI = [
    "😀", "😀😃😄", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪🇫🇷🇨🇳", "❤️", "☀️☁️☂️", "🏳️‍🌈", "text 🎉 text", "🎉text",
    "😀 😀  😀", "1️⃣2️⃣3️⃣", "✓✗→←↑↓", "∀x∈ℝ: ∃y", "∫₀¹ x² dx ≈ ⅓", "♔♕♖", "┌─┐│└┘", "█▓▒░",
    "𝒜𝓑𝕮", "🤖: beep\n👤: boop", "\u200dzero\u200bwidth\u200c", "é vs e\u0301", "ﬁ ﬂ ﬀ",
    "\u202eright to left\u202c", "中😀文",
]

SPACES = [
    "", " ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", " \n ", "a b", "a  b",
    "a   b", " a", "a ", "  a  ", "a\nb", "a \n b", "a\n\n\nb", "a\u00a0b", "a\u3000b",
    "a\u2003b\u2009c", "\ufeffbom", "a\x0bb\x0cc\x85d\u2028e",
]

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
SPECIAL = [
    BOS, EOS, PAD, f"{BOS}hello", f"hello{EOS}", f" {EOS} ", f"{BOS}{BOS}twice",
    f"a{EOS}b{EOS}", "<｜User｜>hi<｜Assistant｜>ho", "<|User|>hi<|Assistant|>ho",
    "<|EOT|>", "x\n<|EOT|>\n", "<think>\nhm\n</think>\n\nyes", "<｜User｜> hi <｜Assistant｜> ",
    "<|im_start|>user\nhi<|im_end|>", "<|begin_of_text|>x<|eot_id|>", "<|endoftext|>",
    "<s>[INST] a [/INST] b</s>", "<｜fim▁begin｜>a<｜fim▁hole｜>b<｜fim▁end｜>",
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}", "<｜begin of sentence｜>",
    "<|begin▁of▁sentence|>", "<｜User", "｜>", "<｜place▁holder▁no▁0｜>",
]

LONG = [
    "User: What is 2+2?\n\nAssistant: 4" + EOS,
    "### Instruction:\nSort a list.\n### Response:\n```py\nsorted(x)\n```\n<|EOT|>\n",
    "a" * 100, "ab " * 40, "=" * 80, "-" * 33 + "\n" + "*" * 17, "." * 50, "!?" * 20,
    "1" * 50, "中" * 30, "😀" * 10, " " * 40 + "x", "\n" * 20, "\t" * 9 + "x",
    "The answer is " + " ".join(str(i) for i in range(60)),
    "\n".join(f"{i}. item" for i in range(12)), "Ħéłłø Wørłđ ŧħïş ïş ödd",
    "tiếng Việt có dấu: ổ ễ ự", "ไทยภาษา ไม่มีช่องว่าง", "עברית מימין לשמאל", "ქართული ენა",
    "\x00\x01\x7f control", "\U0010ffff \ue000 private", "e\u0301\u0302\u0303 stacked",
    "mixed 中文 and हिन्दी and العربية and 12345 and 😀!",
]

STRINGS = ENGLISH + CHINESE + CODE + DIGITS + EMOJI + SPACES + SPECIAL + LONG
KINDS = [ENGLISH, CHINESE, CODE, DIGITS, EMOJI, SPACES, SPECIAL, LONG]
assert all(len(kind) == 25 for kind in KINDS), [len(kind) for kind in KINDS]
assert len(set(STRINGS)) == 200
