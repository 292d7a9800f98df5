# SPDX-License-Identifier: Apache-2.0
"""Random texts of several scripts: words, prices, dates, codes."""

from collections.abc import Mapping

import numpy as np

_DIGITS = "0123456789"
_SIGNS = ".,:-/%#&()+*'"
_VOCABULARY = {
    "Latin": """
    the of and to in is for on with at by from it be as are this that not or an your all more time one new only you
    was will day no open closed shop market harbour bread coffee milk salt sugar total cash change card tax invoice
    receipt order table item price date number street road station platform exit entrance hotel bakery library
    school museum garden river bridge north south east west central parking fresh fish fruit water light power
    service office please thank welcome information ticket gate press push pull danger caution notice quality
    organic natural special offer sale weekend morning evening system settings account search window file edit view
    help message network save cancel delete share download update version page chapter figure section report result
    method value measure between without however quickly jumping zebra oxygen wizard question equipment excellent
    government university department
    """,
    "accented": """
    café crème brûlée façade naïve garçon señor mañana niño corazón où déjà été forêt hôtel île œuvre straße größe
    über müller schön grün öl ärzte köln zürich prüfung fußgänger ångström smörgås blåbær øl brød hjælp år português
    não coração informações água prêmio è perché città più caffè łódź źródło święto żółty ćma dzień čeština příliš
    žluťoučký kůň úpěl ďábelské škola ružový őrült tükör çok teşekkür şehir yağmur
    """,
    "Cyrillic": """
    хлеб молоко кофе рынок гавань вокзал выход вход касса чек итого сумма цена скидка товар дата время город улица
    площадь школа музей театр аптека почта банк гостиница открыто закрыто вода соль сахар рыба мясо овощи фрукты
    большой маленький новый старый север восток поезд платформа билет внимание объявление съезд ещё эхо юбка январь
    щётка фильм
    """,
    "Greek": """
    ψωμί καφές νερό αλάτι αγορά λιμάνι σταθμός έξοδος είσοδος δρόμος πλατεία σχολείο μουσείο θέατρο φαρμακείο
    τράπεζα ξενοδοχείο σύνολο μετρητά ρέστα τιμή ημερομηνία ώρα πόλη ανοιχτό κλειστό ψάρι κρέας φρούτα λαχανικά
    μεγάλο μικρό νέο παλιό βορράς ανατολή εισιτήριο προσοχή φάρος γλώσσα ζωή ύψος
    """,
    "CJK": """
    出口 入口 駅 東京 大阪 京都 北京 上海 港口 面包 市場 銀行 時間 電話 番号 料金 合計 税込 現金 注文 会計 食堂
    薬局 病院 学校 図書館 公園 道路 注意 禁止 営業中 本日 新鮮 野菜 魚 肉 水 塩 茶 酒 米 山 川 海 空 日本語 中国
    人民 大学 工業 有限 会社 コーヒー パン ホテル レストラン タクシー バス テレビ カメラ メニュー ありがとう
    いらっしゃいませ おすすめ ください こちら です ます から まで 春 夏 秋 冬 朝 昼 夜
    """,
}
_WORDS: Mapping[str, tuple[str, ...]] = {script: tuple(words.split()) for script, words in _VOCABULARY.items()}
SCRIPTS = tuple(_WORDS)


def alphabet(script: str) -> frozenset[str]:
    """All characters that texts of a script may contain, without the blank."""
    words = "".join(_WORDS[script])
    return frozenset(words + words.upper() + words.title() + _DIGITS + _SIGNS)


def line(random: np.random.Generator, script: str, length: int) -> str:
    """A text of at most `length` characters, at least one word of it however long."""
    between = "" if script == "CJK" else " "
    case = int(random.choice(3, p=(0.55, 0.25, 0.2)))
    text = word(random, script, case)
    while len(text) < length:
        longer = text + between + word(random, script, case)
        if len(longer) > length:
            break
        text = longer
    return text


def word(random: np.random.Generator, script: str, case: int = 0) -> str:
    """A word or a figure; `case` is 0 as in prose, 1 with capitals at the beginning, 2 in capitals."""
    if random.random() < 0.12:
        return figure(random)
    words = _WORDS[script]
    text = words[int(random.integers(len(words)))]
    if random.random() < 0.05 and script != "CJK":
        text += ".,:"[int(random.integers(3))]
    return (text, text.title(), text.upper())[case]


def figure(random: np.random.Generator) -> str:
    """A number, price, date, time, percentage or code."""
    kind = int(random.integers(6))
    first, second, third = (int(value) for value in random.integers(0, 1000, 3))
    if kind == 0:
        return str(first)
    if kind == 1:
        return price(random)
    if kind == 2:
        return f"{1 + first % 28:02}{'/-.'[second % 3]}{1 + second % 12:02}{'/-.'[second % 3]}{2000 + third % 40}"
    if kind == 3:
        return f"{first % 24:02}:{second % 60:02}"
    if kind == 4:
        return f"{first % 101}%"
    return f"{'ABCDEFGHKLMNPRSTUVXZ'[first % 20]}{second:03}-{third:03}"


def price(random: np.random.Generator) -> str:
    """An amount with two decimals."""
    return f"{int(10 ** random.uniform(0, 3.3))}.{int(random.integers(100)):02}"
