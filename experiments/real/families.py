"""Which tasks of BIG-bench make the suite, and which judge it: their paths in its package."""

# By what one has to do. 16 of the 72 are one skill, the sentiment of a sentence.
FAMILIES = {
    "arithmetic": (
        "arithmetic/2_digit_addition",
        "arithmetic/2_digit_division",
        "arithmetic/2_digit_multiplication",
        "arithmetic/2_digit_subtraction",
        "arithmetic/3_digit_addition",
        "arithmetic/3_digit_subtraction",
    ),
    "bias": (
        "bbq_lite_json/age_ambig",
        "bbq_lite_json/nationality_ambig",
        "bbq_lite_json/physical_appearance_ambig",
        "bbq_lite_json/race_ethnicity_ambig",
    ),
    "colour": (
        "color/hex",
        "color/rgb",
    ),
    "dates": (
        "unnatural_in_context_learning/dates",
        "unnatural_in_context_learning/dates_unnatural_form",
    ),
    "facts": (
        "fact_checker/fever",
        "misconceptions",
        "vitaminc_fact_verification",
    ),
    "grammar": (
        "linguistic_mappings/past_tense_json",
        "linguistic_mappings/plural_json",
        "linguistic_mappings/pronoun_replacement_json",
        "linguistic_mappings/question_formation_json",
        "linguistic_mappings/sentence_negation_json",
        "tense",
    ),
    "judgement": (
        "metaphor_boolean",
        "winowhy",
    ),
    "knowledge": (
        "international_phonetic_alphabet_transliterate",
        "periodic_elements/subtask_1",
        "qa_wikidata",
        "strategyqa",
    ),
    "science": (
        "natural_instructions/subtask037_qasc_generate_related_fact",
        "natural_instructions/subtask038_qasc_combined_fact",
        "natural_instructions/subtask040_qasc_question_generation",
        "natural_instructions/subtask041_qasc_answer_generation",
    ),
    "sentiment": (
        "multiemo/all_sentence_de",
        "multiemo/all_sentence_en",
        "multiemo/all_sentence_es",
        "multiemo/all_sentence_fr",
        "multiemo/all_sentence_it",
        "multiemo/hotels_sentence_de",
        "multiemo/hotels_sentence_en",
        "multiemo/hotels_sentence_fr",
        "multiemo/medicine_sentence_en",
        "multiemo/medicine_sentence_es",
        "multiemo/products_sentence_de",
        "multiemo/products_sentence_en",
        "multiemo/products_sentence_fr",
        "multiemo/reviews_sentence_en",
        "multiemo/reviews_sentence_es",
        "multiemo/reviews_sentence_it",
    ),
    "social": (
        "implicatures",
        "intent_recognition",
        "social_iqa",
        "social_support",
    ),
    "text": (
        "gem/common_gen",
        "gem/e2e_nlg",
        "gem/turk",
    ),
    "time": (
        "natural_instructions/subtask003_mctaco_question_generation_event_duration",
        "natural_instructions/subtask004_mctaco_answer_generation_event_duration",
        "natural_instructions/subtask009_mctaco_question_generation_event_ordering",
        "natural_instructions/subtask010_mctaco_answer_generation_event_ordering",
        "natural_instructions/subtask015_mctaco_question_generation_frequency",
        "natural_instructions/subtask016_mctaco_answer_generation_frequency",
        "natural_instructions/subtask018_mctaco_temporal_reasoning_presence",
        "natural_instructions/subtask021_mctaco_grammatical_logical",
    ),
    "units": (
        "unit_conversion/chained_conversion",
        "unit_conversion/different_systems",
        "unit_conversion/si_conversion",
        "unit_conversion/unit_addition_general",
        "unit_conversion/unit_addition_same",
        "unit_conversion/unit_identification",
    ),
    "words": (
        "language_games/pig_latin_encode",
        "word_unscrambling",
    ),
}

# BIG-Bench Hard, as far as the package has its rows: the other four are made by programs.
BBH = (
    "causal_judgment",
    "date_understanding",
    "disambiguation_qa",
    "dyck_languages",
    "formal_fallacies_syllogisms_negation",
    "geometric_shapes",
    "hyperbaton",
    "logical_deduction/three_objects",
    "logical_deduction/five_objects",
    "logical_deduction/seven_objects",
    "movie_recommendation",
    "navigate",
    "object_counting",
    "penguins_in_a_table",
    "reasoning_about_colored_objects",
    "ruin_names",
    "salient_translation_error_detection",
    "snarks",
    "temporal_sequences",
    "tracking_shuffled_objects/three_objects",
    "tracking_shuffled_objects/five_objects",
    "tracking_shuffled_objects/seven_objects",
    "word_sorting",
)
# Where another name is usual.
RENAMED = {
    "causal_judgment": "causal_judgement",
    "formal_fallacies_syllogisms_negation": "formal_fallacies",
}


def name_of(path: str) -> str:
    """The name of a task of the suite.

    >>> name_of("natural_instructions/subtask038_qasc_combined_fact"), name_of("color/hex")
    ('subtask038_qasc_combined_fact', 'color-hex')
    """
    parent, _, last = path.rpartition("/")
    if parent in ("natural_instructions", "linguistic_mappings"):
        return last.removesuffix("_json")
    return path.replace("/", "-")


SUITE = {family: {path: name_of(path) for path in paths} for family, paths in FAMILIES.items()}
JUDGES = {path: RENAMED.get(path, path.replace("/", "_")) for path in BBH}
