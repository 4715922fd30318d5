"""A word of one piece for every class of the data sets by classes, chosen by their names alone, before any run.

Class names such as `iot_hue_lightchange` or `THE WORLDPOST` are no words: as label words they take several masks, and
three times the passes. A class that is not named here keeps its name.
"""

WORDS = {
    "reuters": {
        "acq": "merger", "alum": "aluminum", "bop": "payments", "cpi": "inflation", "crude": "oil", "earn": "earnings",
        "gnp": "growth", "ipi": "production", "iron-steel": "steel", "money-fx": "currency", "money-supply": "money",
        "nat-gas": "gas", "ship": "shipping", "veg-oil": "vegetable", "wpi": "prices",
    },
    "huffpost": {
        "ARTS & CULTURE": "culture", "BLACK VOICES": "black", "CULTURE & ARTS": "museum", "FOOD & DRINK": "food",
        "GOOD NEWS": "good", "HEALTHY LIVING": "health", "HOME & LIVING": "home", "LATINO VOICES": "latino",
        "QUEER VOICES": "gay", "STYLE & BEAUTY": "beauty", "THE WORLDPOST": "international", "WEIRD NEWS": "weird",
        "WORLD NEWS": "world", "WORLDPOST": "global",
    },
    "hwu64": {
        "alarm_query": "alarm", "alarm_remove": "cancel", "alarm_set": "wake", "audio_volume_down": "lower",
        "audio_volume_mute": "silence", "audio_volume_up": "louder", "calendar_query": "schedule",
        "calendar_remove": "clear", "calendar_set": "appointment", "cooking_recipe": "recipe",
        "datetime_convert": "zone", "datetime_query": "time", "email_addcontact": "contact", "email_query": "mail",
        "email_querycontact": "phone", "email_sendemail": "email", "general_affirm": "yes",
        "general_commandstop": "stop", "general_confirm": "confirm", "general_dontcare": "whatever",
        "general_explain": "explain", "general_joke": "joke", "general_negate": "no", "general_praise": "thanks",
        "general_quirky": "chat", "general_repeat": "repeat", "iot_cleaning": "clean", "iot_coffee": "coffee",
        "iot_hue_lightchange": "color", "iot_hue_lightdim": "dim", "iot_hue_lightoff": "dark",
        "iot_hue_lighton": "light", "iot_hue_lightup": "bright", "iot_wemo_off": "off", "iot_wemo_on": "on",
        "lists_createoradd": "add", "lists_query": "list", "lists_remove": "remove", "music_likeness": "favorite",
        "music_query": "song", "music_settings": "shuffle", "news_query": "news", "play_audiobook": "book",
        "play_game": "game", "play_music": "music", "play_podcasts": "podcast", "play_radio": "radio",
        "qa_currency": "currency", "qa_definition": "definition", "qa_factoid": "fact", "qa_maths": "math",
        "qa_stock": "stock", "recommendation_events": "events", "recommendation_locations": "places",
        "recommendation_movies": "movie", "social_post": "post", "social_query": "facebook",
        "takeaway_order": "order", "takeaway_query": "delivery", "transport_query": "directions",
        "transport_taxi": "taxi", "transport_ticket": "ticket", "transport_traffic": "traffic",
        "weather_query": "weather",
    },
}  # fmt: skip
