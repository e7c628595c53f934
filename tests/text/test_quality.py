"""Quality filters: each rule drops what it is for, and good text of any language stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_journey.core import config as recipes
from llm_journey.core.errors import BadInputError
from llm_journey.text.quality import QualityConfig, judge, repeated_ngram_share, rule_of, top_ngram_share

GOOD = (
    "A lighthouse is a tower that carries a lamp and a lens, built to guide ships at sea. Keepers once lived in it, "
    "trimmed the wick and wound the clockwork that turned the light. Most lamps are electric today, and many towers "
    "stand empty or have become museums. Sailors still take bearings from them when other instruments fail."
)
LANGUAGES = {
    "German": "Die Donaudampfschifffahrtsgesellschaft betrieb Schiffe zwischen Regensburg und dem Schwarzen Meer.",
    "Finnish": "Epäjärjestelmällistyttämättömyydellänsäkään hän ei saanut kirjakauppiaita vakuuttuneiksi asiastaan.",
    "Russian": "Маяк служит для навигации судов и подаёт световые сигналы в тёмное время суток.",
    "Arabic": "المنارة برج عال يحمل مصباحا لإرشاد السفن ليلا إلى الموانئ الآمنة.",
    "Hindi": "प्रकाशस्तंभ समुद्र के किनारे बना एक ऊँचा स्तंभ होता है जो जहाजों को रास्ता दिखाता है।",
    "Vietnamese": "Hải đăng là một ngọn tháp được xây dựng để soi sáng cho tàu thuyền đi biển vào ban đêm.",
    "Chinese": "灯塔是建于航道关键部位附近的一种塔状发光航标，用以引导船舶航行。中国最早的灯塔出现在福建。",
    "Japanese": "灯台は、岬の先端や港内に設置され、その外観や灯光により船舶の航行目標となる施設である。",
    "Thai": "ประภาคารคือสิ่งก่อสร้างที่มีลักษณะเป็นหอสูงใช้ส่องแสงเพื่อนำทางเรือในทะเลเวลากลางคืน",
    "Korean": "등대는 항로 표지의 하나로 밤에 배가 안전하게 다닐 수 있도록 불빛으로 알려 주는 시설이다.",
}
SPAM = "Buy cheap watches now and save. " * 30


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_language_is_dropped_by_default(language: str) -> None:
    text = LANGUAGES[language]
    assert judge(text, QualityConfig()) == (True, "")
    assert judge(f"{text} 1", QualityConfig())[0]


def test_good_text_and_verse_stay() -> None:
    assert judge(GOOD, QualityConfig()) == (True, "")
    words = GOOD.split()
    verse = "\n".join(" ".join(words[start : start + 4]) for start in range(0, len(words), 4))
    assert judge(verse, QualityConfig()) == (True, "")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("Too short", "too short"),
        ("", "too short"),
        ("a b c d e f g h i j", "odd word lengths"),
        ("QWxhZGRpbjpvcGVuIHNlc2FtZQ== " * 12, "odd word lengths"),
        ("101 202 303 404 505 total 606 707", "few words with letters"),
        ("Read more... about this... #topic and then #more here...", "many symbols"),
        ("Lorem ipsum dolor sit amet, consectetur adipiscing elit.", "placeholder text"),
        ("\n".join(f"- {word} sold here" for word in GOOD.split()), "mostly bullet points"),
        ("\n".join(f"The {word} story goes on…" for word in GOOD.split()[:9]), "lines cut off by an ellipsis"),
        (
            "\n".join([f"{GOOD}\n\nShare this page\n\nSubscribe now"] + ["Share this page", "Subscribe now"] * 8),
            "repeated lines",
        ),
        (SPAM, "one phrase fills it"),
        (f"{GOOD} {GOOD}", "repeated phrases"),
    ],
)
def test_each_rule_drops_what_it_is_for(text: str, rule: str) -> None:
    config = QualityConfig(max_symbols_per_word=10) if rule == "lines cut off by an ellipsis" else QualityConfig()
    keep, reason = judge(text, config)
    assert not keep
    assert rule_of(reason) == rule
    assert judge(text, QualityConfig(enabled=False)) == (True, "")


def test_rules_that_are_off_by_default() -> None:
    listing = "\n".join(f"Entry {word}" for word in GOOD.replace(".", "").split())
    assert judge(listing, QualityConfig())[0]
    assert rule_of(judge(listing, QualityConfig(min_sentence_lines=0.12))[1]) == "few lines end like a sentence"
    assert judge(GOOD, QualityConfig(min_stop_words=2))[0]
    assert rule_of(judge(LANGUAGES["German"], QualityConfig(min_stop_words=2))[1]) == "no running English text"
    assert rule_of(judge(GOOD, QualityConfig(max_words=20))[1]) == "too long"
    assert rule_of(judge(LANGUAGES["Chinese"], QualityConfig(max_words=20))[1]) == "too long"


def test_shares_of_ngrams_by_hand() -> None:
    words = list("abcabcabcabcabc")
    assert top_ngram_share(words, 3, 15) == 1.0  # "a b c" stands five times and fills all of it
    assert top_ngram_share(words[:9], 3, 9) == 0.0  # three times are not enough to say so
    # "v w x y z" a second time: 5 of 11 characters; overlapping repeats are counted once
    repeated = list("vwxyzqvwxyz")
    assert repeated_ngram_share(repeated, 5, 11) == pytest.approx(5 / 11)
    assert repeated_ngram_share(["a"] * 10, 5, 10) == pytest.approx(9 / 10)
    assert repeated_ngram_share(GOOD.split(), 5, len(GOOD)) == 0.0


@given(st.lists(st.sampled_from("abcdé"), min_size=1, max_size=40), st.integers(5, 10))
def test_repeated_shares_equal_a_slow_count(words: list[str], n: int) -> None:
    covered = set()
    for start in range(len(words) - n + 1):
        if any(words[start : start + n] == words[earlier : earlier + n] for earlier in range(start)):
            covered.update(range(start, start + n))
    assert repeated_ngram_share(words, n, len(words)) == pytest.approx(len(covered) / len(words))


@given(st.text())
def test_any_string_gets_a_verdict(text: str) -> None:
    keep, reason = judge(text, QualityConfig())
    assert keep == (reason == "")


def test_a_wrong_setting_names_its_key() -> None:
    with pytest.raises(BadInputError, match="unknown key 'min_word'"):
        recipes.validate(QualityConfig, {"min_word": 3}, "recipe.yaml")
    with pytest.raises(BadInputError, match="max_words 3 is below min_words 5"):
        recipes.validate(QualityConfig, {"max_words": 3}, "recipe.yaml")
    with pytest.raises(BadInputError, match="min_mean_word_length"):
        recipes.validate(QualityConfig, {"max_mean_word_length": 1.0}, "recipe.yaml")
