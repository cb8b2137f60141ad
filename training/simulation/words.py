"""The words of the simulated world: its categories, and what titles and creators are named."""

from collections.abc import Mapping

TOPICS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "Space Adventure": (
        ("Mars Colony", "Alien Contact", "Star Fleet"),
        "Orbit Nebula Comet Starship Galaxy Rocket Eclipse Beacon",
    ),
    "Cooking": (
        ("Street Food", "Sourdough Baking", "Family Dinner"),
        "Kitchen Recipe Table Spice Feast Oven Pantry Skillet",
    ),
    "Noir": (
        ("Private Detective", "Harbor Heist", "Crooked City"),
        "Shadow Alley Alibi Midnight Motive Witness Rain Cigarette",
    ),
    "Gardening": (
        ("Urban Balcony", "Heirloom Vegetables", "Rose Breeding"),
        "Garden Seed Orchard Trowel Meadow Blossom Compost Greenhouse",
    ),
    "History": (
        ("Roman Empire", "Silk Road", "Industrial Age"),
        "Empire Chronicle Throne Treaty Siege Archive Dynasty Ruin",
    ),
    "Jazz": (
        ("Bebop Nights", "Big Band", "Cool Trumpet"),
        "Saxophone Chorus Groove Ballad Quartet Stage Rhythm Solo",
    ),
    "Mountaineering": (
        ("Alpine Climbing", "Winter Ascent", "Rescue Team"),
        "Summit Ridge Glacier Rope Avalanche Cliff Basecamp Peak",
    ),
    "Travel": (
        ("Island Hopping", "Night Train", "Desert Caravan"),
        "Journey Passport Harbor Map Coast Border Lantern Voyage",
    ),
    "Romance": (
        ("Second Chance", "Summer Wedding", "Secret Letters"),
        "Heart Kiss Promise Vow Embrace Rendezvous Valentine Longing",
    ),
    "Horror": (
        ("Haunted House", "Vampire Hunt", "Cursed Village"),
        "Grave Scream Coffin Ghost Cellar Ritual Fog Crypt",
    ),
    "Science": (
        ("Deep Ocean", "Quantum Puzzle", "Human Brain"),
        "Experiment Theory Laboratory Particle Microscope Signal Equation Discovery",
    ),
    "Football": (
        ("Cup Final", "Youth Academy", "Transfer Season"),
        "Goal Stadium Striker Derby Whistle Coach Penalty League",
    ),
    "Wildlife": (
        ("Arctic Wolves", "Rainforest Birds", "Savanna Elephants"),
        "Herd Nest Migration Burrow Predator River Canopy Trail",
    ),
    "Startups": (
        ("Seed Funding", "Garage Founders", "Remote Team"),
        "Pitch Venture Product Market Launch Ledger Boardroom Exit",
    ),
    "Fantasy Quest": (
        ("Dragon Riders", "Lost Kingdom", "Wizard School"),
        "Sword Spell Prophecy Castle Crown Rune Amulet Forest",
    ),
    "Comedy": (
        ("Office Pranks", "Stand Up", "Awkward Neighbors"),
        "Joke Prank Blunder Party Disguise Mixup Roommate Parade",
    ),
}
"""Category to its subtopics and the nouns of its titles."""

TONES = (
    "Dark Grim Bitter Cold Broken Forbidden",
    "Bright Golden Happy Sunny Merry Gentle",
    "Wild Bold Furious Daring Reckless Burning",
    "Quiet Slow Hidden Patient Silent Tender",
)
"""Adjectives of titles, by tone."""
FIRST_NAMES = (
    "Ada Boris Clara Dmitri Elena Felix Grace Hugo Iris Jonas Kira Leon Mara Nils Olga Pavel Rosa Sven Tessa Viktor"
)
LAST_NAMES = (
    "Abel Brandt Castell Dorn Engel Faber Gallo Hart Ivers Jansen Keller Lund Moreau Novak Orlov Prins Quist Roth Sato"
)
SYNONYMS: Mapping[str, str] = {
    "space": "cosmic",
    "adventure": "saga",
    "cooking": "culinary",
    "noir": "gangster",
    "gardening": "horticulture",
    "history": "historical",
    "jazz": "swing",
    "mountaineering": "alpinism",
    "travel": "tourism",
    "romance": "love",
    "horror": "scary",
    "science": "scientific",
    "football": "soccer",
    "wildlife": "animals",
    "startups": "entrepreneurs",
    "fantasy": "magical",
    "comedy": "funny",
    "alien": "extraterrestrial",
    "fleet": "armada",
    "dinner": "supper",
    "detective": "sleuth",
    "heist": "robbery",
    "vegetables": "veggies",
    "wedding": "marriage",
    "vampire": "undead",
    "ocean": "sea",
    "brain": "mind",
    "pranks": "tricks",
    "wizard": "sorcerer",
    "kingdom": "realm",
}
"""Words of categories and subtopics to what some people type in their place. No text of the world has the latter."""
