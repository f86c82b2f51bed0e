"""From rows to answers: studies, tables, findings, accuracy, claims, comparisons, plans."""
