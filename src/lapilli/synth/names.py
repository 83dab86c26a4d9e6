"""What pictures other than drawn scenes may show, by name; absent things are chosen from here."""

from __future__ import annotations

GROUPS = {
    "clothing": (
        "dress", "hat", "jacket", "long-sleeved shirt", "pants", "shirt", "shoes", "shorts",
        "skirt", "t-shirt",
    ),
    "fruit": (
        "apple", "avocado", "banana", "kiwi", "lemon", "lime", "mango", "melon", "nectarine",
        "orange", "papaya", "passion fruit", "peach", "pear", "pineapple", "plum", "pomegranate",
        "red grapefruit", "satsuma",
    ),
    "vegetable": (
        "asparagus", "aubergine", "cabbage", "carrot", "cucumber", "garlic", "ginger", "leek",
        "mushroom", "onion", "pepper", "potato", "red beet", "tomato", "zucchini",
    ),
    "package": (
        "juice", "milk", "oat milk", "oatghurt", "sour cream", "sour milk", "soy milk", "soyghurt",
        "yoghurt",
    ),
    "animal": ("cat", "dog"),
}  # fmt: skip
"""Names that labelled photographs carry, by what they belong to."""

COUNTRIES = (
    "Argentina", "Australia", "Austria", "Belgium", "Brazil", "Canada", "Chile", "China", "Cuba",
    "Denmark", "Egypt", "Finland", "France", "Germany", "Greece", "India", "Indonesia", "Ireland",
    "Israel", "Italy", "Jamaica", "Japan", "Kenya", "Mexico", "Nepal", "the Netherlands", "Norway",
    "Pakistan", "Peru", "Poland", "Portugal", "Spain", "Sweden", "Switzerland", "Thailand",
    "Turkey", "Ukraine", "the United Kingdom", "the United States", "Vietnam",
)  # fmt: skip

CATEGORIES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "bench", "bird", "cat", "dog", "horse", "sheep",
    "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "suitcase", "frisbee",
    "kite", "skateboard", "surfboard", "tennis racket", "bottle", "wine glass", "fork", "knife",
    "spoon", "bowl", "banana", "apple", "sandwich", "orange", "carrot", "hot dog", "pizza",
    "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet", "tv",
    "laptop", "keyboard", "cell phone", "microwave", "oven", "sink", "refrigerator", "book",
    "clock", "vase", "teddy bear", "toothbrush",
)  # fmt: skip
"""What photographs of scenes are labelled with wherever it stands, so that absence is known."""

OUTSIDE = ("dog", "cat", "car", "house", "tree", "person", "bird", "boat", "chair", "book")
"""Things that no drawn scene shows."""

FAR = ("elephant", "airplane", "train", "bicycle", "horse", "boat", "clock", "guitar")
"""Subjects that none of the groups holds."""


def may_be_many(name: str) -> bool:
    """Whether a photograph of it may show several: a shelf of apples is labelled as one."""
    return group_of(name) in ("fruit", "vegetable")


def group_of(name: str) -> str | None:
    """The group that a name belongs to, if it is known."""
    return next((group for group, names in GROUPS.items() if name in names), None)
