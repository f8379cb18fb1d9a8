package seed

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"
)

// What a company has: a few values that are on most rows, more that are rare, and some that are on one.

type profile struct {
	id, name string
	lifetime time.Duration
	share    float64
}

// profiles: prof-default is there, the others are made.
var profiles = [...]profile{
	{"prof-default", "Default", 90 * day, 0.55},
	{"prof-public", "Public servers, 47 days", 47 * day, 0.25},
	{"prof-internal", "Internal servers, 200 days", 200 * day, 0.12},
	{"prof-appliance", "Appliances, 398 days", 398 * day, 0.08},
}

func profileOf(draw float64) int8 {
	for i, p := range profiles {
		if draw -= p.share; draw < 0 {
			return int8(i)
		}
	}
	return 0
}

type policy struct {
	id, name  string
	before    time.Duration // 0: two thirds of the lifetime
	automatic bool
	share     float64
}

// policies: pol-default is there, the others are made.
var policies = [...]policy{
	{"pol-default", "Default", 0, true, 0.82},
	{"pol-early", "30 days before the end", 30 * day, true, 0.15},
	{"pol-manual", "By request only", 0, false, 0.03},
}

const manualPolicy = 2

func policyOf(draw float64) int8 {
	for i, p := range policies {
		if draw -= p.share; draw < 0 {
			return int8(i)
		}
	}
	return 0
}

// after is how long after its start a certificate is renewed, as the scheduler decides it.
func (p policy) after(lifetime time.Duration) time.Duration {
	if p.before > 0 && lifetime-p.before >= lifetime/3 {
		return lifetime - p.before
	}
	return time.Duration(float64(lifetime) * 2 / 3)
}

// rule is how the scheduler explains it.
func (p policy) rule(lifetime time.Duration) string {
	if !p.automatic {
		return "policy " + p.id + ": only by request"
	}
	what := "2/3 of the lifetime"
	if p.before > 0 && lifetime-p.before >= lifetime/3 {
		what = "30 days before the end"
	}
	return fmt.Sprintf("policy %s: %s, spread over %.1f days", p.id, what, float64((lifetime-p.after(lifetime))/10)/float64(day))
}

// issuers: iss-local is there; the others are made and are disabled, as those that a company has left.
var issuers = [...]struct {
	id, name, kind string
	share          float64
}{
	{"iss-local", "Local CA", "local", 0.90},
	{"iss-public", "Public CA, until 2026", "digicert", 0.08},
	{"iss-partner", "Partners' CA", "sectigo", 0.02},
}

const localIssuer = 0

func issuerOf(draw float64) int8 {
	for i, p := range issuers {
		if draw -= p.share; draw < 0 {
			return int8(i)
		}
	}
	return localIssuer
}

// statusOf gives all but REVOKED, which is by number.
func statusOf(draw float64) status {
	switch {
	case draw < 0.02:
		return pending
	case draw < 0.06:
		return expired
	case draw < 0.10:
		return archived
	default:
		return active
	}
}

func list(words string) []string { return strings.Fields(words) }

var (
	apps = list(`payments checkout login portal search catalog orders billing inventory shipping mail vpn git ci registry grafana
 prometheus ldap kafka redis postgres mongo elastic jenkins wiki chat tickets crm erp hr cdn assets api gateway proxy edge dns ntp
 backup storage mqtt sip voice video print scan badge camera meter plc scada robot lims mes wms tms pos kiosk atm fraud risk ledger
 treasury pricing quotes leads forms surveys events stream feed push sms notify audit archive reports bi lake etl batch cron queue`)
	teams = list(`platform commerce payments identity network security data mobile web desktop storage messaging finance hr legal
 logistics factory retail research quality support marketing partners compliance facilities sre database observability release
 integration analytics fraud`)
	environments      = list(`production staging development test dr sandbox`)
	environmentShares = []float64{0.56, 0.22, 0.14, 0.05, 0.02, 0.01}
	regions           = list(`eu-central eu-west us-east us-west ap-south ap-east`)
	givenNames        = list(`anna ben carla david emma felix grace henry ines jonas katja leon mara nils olga paul rosa simon tina uwe vera`)
	familyNames       = list(`adams becker chen dubois evans fischer garcia hansen ito jensen kumar lopez meyer novak okafor patel rossi
 schmidt tanaka weber young`)
)

// skewed takes the first words much more often than the last.
func skewed(r *rand.Rand, words []string) string {
	u := r.Float64()
	return words[int(float64(len(words))*u*u*u)]
}

func environmentOf(r *rand.Rand) string {
	draw := r.Float64()
	for i, share := range environmentShares {
		if draw -= share; draw < 0 {
			return environments[i]
		}
	}
	return environments[0]
}

// person is an owner: some have a great many certificates, most a few.
func person(r *rand.Rand) string {
	return skewed(r, givenNames) + "." + skewed(r, familyNames) + "@example.com"
}

// wording is what of a certificate is words.
type wording struct {
	name, commonName                string
	dnsNames                        []string
	owner, team, environment, label string
}

// words draws the words of a certificate. Names are unique by their number.
func (m *model) words(i int) wording {
	r := m.random(ofName, i)
	w := wording{owner: person(r), team: skewed(r, teams), environment: environmentOf(r)}
	app, number := skewed(r, apps), sixDigits(i)
	w.name = app + "-" + number
	host := w.name + "." + hostPart(w.environment) + w.team + ".example.com"
	w.dnsNames = append(w.dnsNames, host)
	switch share := r.Float64(); {
	case share < 0.01: // a few have very many
		for k := range 8 {
			w.dnsNames = append(w.dnsNames, "shard-"+strconv.Itoa(k)+"."+host)
		}
	case share < 0.2:
		w.dnsNames = append(w.dnsNames, "www."+host)
	case share < 0.25:
		w.dnsNames = append(w.dnsNames, "*."+host)
	}
	if r.Float64() < 0.3 {
		w.commonName = host
	}
	w.label = `{"app": "` + app + `", "region": "` + skewed(r, regions) + `"`
	switch share := r.Float64(); {
	case share < 0.02:
		w.label += `, "pci": "true"`
	case share < 0.07:
		w.label += `, "change": "CHG` + number + `"`
	}
	w.label += "}"
	return w
}

// sixDigits has leading zeros, so that names sort by their number.
func sixDigits(i int) string {
	const million = 1_000_000
	return strconv.Itoa(million + i%million)[1:]
}

// hostPart is what a name says of its environment: nothing in production.
func hostPart(environment string) string {
	if environment == environments[0] {
		return ""
	}
	return environment + "."
}

func (w wording) searchText() string {
	return strings.ToLower(w.name + "\n" + w.commonName + "\n" + strings.Join(w.dnsNames, "\n"))
}

// user is who asked, as the gateway names the owner of an API key: one person does half of the work.
func (m *model) user(i int) string {
	const users = 12
	p := m.draw(ofUser, i)
	if p.Uint64()%2 == 0 {
		return "operator-0"
	}
	return "operator-" + strconv.FormatUint(p.Uint64()%users, 10)
}
