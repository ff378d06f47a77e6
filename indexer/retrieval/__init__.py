"""From trigger items to candidates by index lookup: no search structure is walked."""
