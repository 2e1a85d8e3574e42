"""The words of the synthetic shop: departments, categories, what goes with what, and the names of things."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ADJECTIVES", "CATEGORIES", "CONCERNS", "DEPARTMENTS", "LINES", "SHADES", "SYLLABLES", "TIERS", "Category"]


@dataclass(frozen=True)
class Category:
    """A category of products: what they are called, sized and priced (US dollars), and what is bought after them.

    `then` names the categories that complement this one, most usual first; the relation is directed. A `refill` runs
    out and is bought again; `shaded` products come in colours.
    """

    department: str
    name: str
    nouns: tuple[str, ...]
    sizes: tuple[str, ...]
    price: float
    then: tuple[str, ...]
    refill: bool
    shaded: bool


ML = ("30 ml", "50 ml", "75 ml", "100 ml")
BOTTLE = ("200 ml", "250 ml", "400 ml", "500 ml")
SMALL = ("10 ml", "15 ml", "20 ml", "30 ml")
PIECES = ("Set of 2", "Set of 3", "Set of 5", "Single")
GRAMS = ("2 g", "4 g", "8 g", "12 g")
CANDLE = ("120 g", "190 g", "300 g")

# Name, nouns, sizes, price, complements, marks.
ASSORTMENT = {
    "Skin Care": (
        ("Cleansers", "Gel Cleanser, Foam Cleanser, Cream Cleanser, Cleansing Balm", BOTTLE, 12,
         "Toners, Serums, Face Creams", "refill"),
        ("Toners", "Toner, Facial Mist, Essence", BOTTLE, 14, "Serums, Face Creams", ""),
        ("Serums", "Serum, Ampoule, Face Oil, Booster", SMALL, 26, "Face Creams, Eye Creams, Sunscreens", ""),
        ("Face Creams", "Day Cream, Night Cream, Gel Cream, Face Lotion", ML, 24,
         "Eye Creams, Sunscreens, Face Masks", "refill"),
        ("Eye Creams", "Eye Cream, Eye Gel, Eye Serum", SMALL, 22, "Face Masks, Serums", ""),
        ("Sunscreens", "Sunscreen SPF 30, Sunscreen SPF 50, Sun Stick", ML, 18, "After Sun, Lip Balms", "refill"),
        ("After Sun", "After Sun Gel, After Sun Lotion", BOTTLE, 12, "Body Lotions, Sunscreens", ""),
        ("Face Masks", "Clay Mask, Sheet Mask, Sleeping Mask, Peel", ML, 16, "Serums, Face Creams", ""),
    ),
    "Hair Care": (
        ("Shampoos", "Shampoo, Dry Shampoo, Shampoo Bar", BOTTLE, 10, "Conditioners, Hair Masks, Hair Oils", "refill"),
        ("Conditioners", "Conditioner, Leave-In Conditioner", BOTTLE, 10, "Hair Masks, Hair Oils, Styling", "refill"),
        ("Hair Masks", "Hair Mask, Hair Treatment", BOTTLE, 16, "Hair Oils, Shampoos", ""),
        ("Hair Oils", "Hair Oil, Hair Serum", ML, 18, "Styling, Hair Brushes", ""),
        ("Styling", "Mousse, Hair Spray, Curl Cream, Heat Protectant", BOTTLE, 13, "Hair Brushes, Shampoos", ""),
        ("Hair Brushes", "Paddle Brush, Round Brush, Detangling Brush, Wide Comb", PIECES, 15,
         "Styling, Hair Oils", ""),
    ),
    "Makeup": (
        ("Primers", "Primer, Pore Filler", ML, 20, "Foundations, Concealers", ""),
        ("Foundations", "Foundation, BB Cream, Tinted Moisturizer", ML, 24,
         "Concealers, Powders, Makeup Brushes", "shaded"),
        ("Concealers", "Concealer, Color Corrector", SMALL, 16, "Powders, Blushes", "shaded"),
        ("Powders", "Setting Powder, Pressed Powder", GRAMS, 18, "Blushes, Makeup Brushes", "shaded"),
        ("Blushes", "Blush, Bronzer, Highlighter", GRAMS, 17, "Lipsticks, Makeup Brushes", "shaded"),
        ("Eyeshadows", "Eyeshadow, Eyeshadow Palette", GRAMS, 21, "Eyeliners, Mascaras", "shaded"),
        ("Eyeliners", "Eyeliner Pencil, Liquid Eyeliner, Kohl", GRAMS, 11, "Mascaras, Makeup Removers", "shaded"),
        ("Mascaras", "Mascara, Brow Gel", SMALL, 14, "Makeup Removers, Eyeliners", "refill"),
        ("Lipsticks", "Lipstick, Liquid Lipstick, Lip Gloss", GRAMS, 15, "Lip Liners, Lip Balms", "shaded"),
        ("Lip Liners", "Lip Liner, Lip Crayon", GRAMS, 9, "Lipsticks, Lip Balms", "shaded"),
        ("Makeup Brushes", "Powder Brush, Foundation Brush, Blending Sponge", PIECES, 17,
         "Eyeshadows, Makeup Removers", ""),
        ("Makeup Removers", "Micellar Water, Makeup Remover, Remover Wipes", BOTTLE, 9,
         "Cleansers, Mascaras", "refill"),
    ),
    "Nails": (
        ("Nail Polishes", "Nail Polish, Gel Nail Polish, Nail Lacquer", SMALL, 8,
         "Top Coats, Polish Removers, Nail Tools", "shaded"),
        ("Top Coats", "Top Coat, Base Coat, Quick-Dry Drops", SMALL, 9, "Polish Removers, Nail Polishes", ""),
        ("Polish Removers", "Polish Remover, Remover Pads", BOTTLE, 6, "Nail Tools, Hand Creams", "refill"),
        ("Nail Tools", "Nail File, Cuticle Pusher, Nail Clipper, Nail Art Pen", PIECES, 7,
         "Nail Polishes, Hand Creams", ""),
    ),
    "Bath & Body": (
        ("Body Washes", "Body Wash, Shower Gel, Shower Oil", BOTTLE, 9,
         "Body Scrubs, Body Lotions, Deodorants", "refill"),
        ("Body Scrubs", "Body Scrub, Exfoliating Polish", BOTTLE, 15, "Body Lotions, Bath Soaks", ""),
        ("Body Lotions", "Body Lotion, Body Butter, Body Oil", BOTTLE, 13, "Hand Creams, Perfumes", "refill"),
        ("Hand Creams", "Hand Cream, Hand Balm", ML, 8, "Lip Balms, Body Lotions", "refill"),
        ("Bath Soaks", "Bath Salts, Bubble Bath, Bath Bomb", BOTTLE, 11, "Candles, Body Lotions", ""),
        ("Deodorants", "Deodorant Stick, Roll-On Deodorant", ML, 7, "Body Washes, Perfumes", "refill"),
        ("Lip Balms", "Lip Balm, Lip Mask", SMALL, 5, "Hand Creams, Lipsticks", "refill"),
    ),
    "Fragrance": (
        ("Perfumes", "Eau de Parfum, Eau de Toilette, Perfume Oil", ML, 58, "Body Mists, Body Lotions", ""),
        ("Body Mists", "Body Mist, Hair Mist", BOTTLE, 16, "Perfumes, Deodorants", ""),
        ("Candles", "Scented Candle, Reed Diffuser", CANDLE, 25, "Body Mists, Bath Soaks", ""),
    ),
    "Grooming": (
        ("Razors", "Safety Razor, Razor Blades, Trimmer", PIECES, 20, "Shaving Creams, Aftershaves", ""),
        ("Shaving Creams", "Shaving Cream, Shaving Gel, Shaving Soap", BOTTLE, 9, "Aftershaves, Razors", "refill"),
        ("Aftershaves", "Aftershave Balm, Aftershave Lotion", ML, 14, "Beard Care, Face Creams", ""),
        ("Beard Care", "Beard Oil, Beard Balm, Beard Wash", ML, 17, "Hair Brushes, Razors", ""),
    ),
}  # fmt: skip

DEPARTMENTS = tuple(ASSORTMENT)
CATEGORIES = tuple(
    Category(
        department=department,
        name=name,
        nouns=tuple(nouns.split(", ")),
        sizes=sizes,
        price=price,
        then=tuple(then.split(", ")),
        refill="refill" in marks,
        shaded="shaded" in marks,
    )
    for department, rows in ASSORTMENT.items()
    for name, nouns, sizes, price, then, marks in rows
)

LINES = (
    "Aloe", "Amber", "Argan", "Bamboo", "Birch", "Black Rice", "Camellia", "Cedar", "Chamomile", "Charcoal",
    "Citrus", "Coconut", "Collagen", "Cucumber", "Fig", "Ginger", "Green Tea", "Honey", "Hyaluronic", "Iris",
    "Jasmine", "Lavender", "Lemon Balm", "Marula", "Mint", "Niacinamide", "Oat", "Orchid", "Peony", "Peptide",
    "Pomegranate", "Retinol", "Rose", "Rosemary", "Saffron", "Sandalwood", "Sea Salt", "Shea", "Silk", "Vanilla",
    "Vitamin C", "White Musk", "Yuzu",
)  # fmt: skip
ADJECTIVES = (
    "Balancing", "Brightening", "Calming", "Clarifying", "Daily", "Deep", "Firming", "Gentle", "Hydrating",
    "Intense", "Lightweight", "Nourishing", "Purifying", "Radiant", "Renewing", "Restoring", "Sensitive",
    "Smoothing", "Soft", "Strengthening", "Ultra", "Velvet", "Volumizing", "Weightless",
)  # fmt: skip
SHADES = (
    "Almond", "Apricot", "Berry", "Bronze", "Brick", "Cocoa", "Copper", "Coral", "Cranberry", "Ebony", "Espresso",
    "Fawn", "Ginger", "Honey", "Ivory", "Lilac", "Mauve", "Mocha", "Navy", "Nude", "Olive", "Peach", "Pearl",
    "Plum", "Porcelain", "Rosewood", "Ruby", "Sand", "Sienna", "Slate", "Smoke", "Taupe", "Terracotta", "Violet",
    "Walnut", "Wine",
)  # fmt: skip
CONCERNS = (
    "dry skin", "oily skin", "sensitive skin", "mature skin", "every day", "travel", "cold weather", "summer",
    "dull skin", "damaged hair", "fine hair", "a natural look", "an evening out", "relaxing at home",
)  # fmt: skip
TIERS = (("budget", 0.55), ("everyday", 1.0), ("premium", 1.8), ("luxury", 3.4))
SYLLABLES = tuple(
    tuple(part.split())
    for part in (
        "Au Bel Ca Del Ely Fio Ga Hel Iso Jun Ka Lu Mi No Ori Pal Ra Sol Tal Va Wil Yl Ze",
        "bri cha da ga la len li ma na nor pe ra ri ro sa ta ve vi zo",
        "bel dor el ette ia ine is la len mar mont na nd on ra rine ry sse ta va",
    )
)
