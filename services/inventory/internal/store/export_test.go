package store

import "github.com/certctl/certctl/pkg/search"

// SearchCertificates is what a list of certificates asks for.
func SearchCertificates(f CertificateFilter, s Slice) search.Search {
	return f.where().search(certificateTable(), s)
}

// LateSQL is the statement of Late.
const LateSQL = late
