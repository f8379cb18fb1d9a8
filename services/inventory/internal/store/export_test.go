package store

// ListCertificatesSQL is the statement of a list of certificates.
func ListCertificatesSQL(f CertificateFilter, s Slice) (string, []any, error) {
	return listCertificates(f, s)
}
