package lease

// ClaimSQL shows the statement to a test of its plan.
func ClaimSQL(t *Table) string { return t.claim }
