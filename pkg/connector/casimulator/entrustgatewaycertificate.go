package casimulator

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// gatewayCertificate is a certificate as CA Gateway shows it. Certificates of a chain have only the data.
type gatewayCertificate struct {
	Status          string             `json:"status,omitempty"`
	VersionNumber   string             `json:"versionNumber,omitempty"`
	SerialNumber    string             `json:"serialNumber,omitempty"`
	IssuerName      string             `json:"issuerName,omitempty"`
	ValidityPeriod  string             `json:"validityPeriod,omitempty"`
	SubjectName     string             `json:"subjectName,omitempty"`
	RevocationInfo  *gatewayRevocation `json:"revocationInfo,omitempty"`
	CertificateData string             `json:"certificateData"`
}

type gatewayRevocation struct {
	Reason         string `json:"reason"`
	RevocationDate string `json:"revocationDate"`
	CompromiseDate string `json:"compromiseDate,omitempty"`
	Comment        string `json:"comment,omitempty"`
}

// find gives the issued certificate that the path names.
func (a *entrustgatewayAPI) find(c *call) (*order, *request, bool) {
	o, ok := c.visible(a.locate(c))
	if !ok {
		return nil, nil, false
	}
	r, ok := o.serial(gatewaySerial(c.path("serial")))
	return o, r, ok && r.state(c.now) == Issued
}

func (a *entrustgatewayAPI) getCertificate(c *call) reply {
	o, r, ok := a.find(c)
	if !ok {
		return a.problem(http.StatusNotFound, "there is no such certificate")
	}
	der, err := a.sim.certificate(o, r.ID)
	if err != nil {
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	issuer := a.sim.authority.intermediate.certificate.Subject.String()
	begin := r.NotBefore
	if begin.IsZero() {
		begin = a.sim.said(r.issuedAt(c.now)).Truncate(time.Second)
	}
	shown := gatewayCertificate{
		Status: "normal", VersionNumber: "3", SerialNumber: strings.ToLower(c.serial(r)), IssuerName: issuer, SubjectName: r.subjectName(),
		ValidityPeriod:  begin.Format(time.RFC3339) + "/" + r.expires(begin).Format(time.RFC3339),
		CertificateData: encodeDER(der),
	}
	if !r.RevokedAt.IsZero() {
		shown.Status = "revoked"
		if r.RevocationReason == certificateHold {
			shown.Status = "hold"
		}
		shown.RevocationInfo = &gatewayRevocation{
			Reason: r.RevocationReason, RevocationDate: a.sim.said(r.RevokedAt).Format(time.RFC3339),
			CompromiseDate: o.Attributes["compromise_date:"+r.ID], Comment: o.Attributes["comment:"+r.ID],
		}
	}
	return jsonReply(http.StatusOK, struct {
		Type        string               `json:"type"`
		Certificate gatewayCertificate   `json:"certificate"`
		Chain       []gatewayCertificate `json:"chain"`
	}{"CertificateResponse", shown, gatewayChain(c.chain(der, true), der)})
}

// certificateHold is the reason that can be taken back (RFC 5280, section 5.3.1).
const certificateHold = "certificateHold"

// gatewayReasons are those that actions take. The last two are of Entrust's own command-line client only.
func gatewayReasons() []string {
	return []string{
		"unspecified", "keyCompromise", "affiliationChanged", "superseded", "cessationOfOperation", certificateHold,
		"caCompromise", "privilegeWithdrawn",
	}
}

// gatewayAction is what POST actions takes, and with an id and a status what it answers.
type gatewayAction struct {
	Type    string `json:"type"`
	ID      string `json:"id,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Comment string `json:"comment,omitempty"`
	Status  string `json:"status,omitempty"`
	// IssueCRL is a boolean or its text.
	IssueCRL       json.RawMessage `json:"issueCrl,omitempty"`
	CompromiseDate string          `json:"compromiseDate,omitempty"`
	// SucceedAnyway is true when nothing is said.
	SucceedAnyway *bool             `json:"succeedIfAlreadyInRequestedState,omitempty"`
	Properties    map[string]string `json:"properties,omitempty"`
}

// check gives the field that is wrong, and why.
func (g *gatewayAction) check() (target string, err error) {
	switch {
	case !slices.Contains([]string{"RevokeAction", "HoldAction", "UnholdAction", "ReactivateAction"}, g.Type):
		return "action.type", fmt.Errorf("there is no type %q", g.Type)
	case g.ID != "" || g.Status != "":
		return "action", errors.New("id and status are the gateway's to give")
	case g.Reason != "" && !slices.Contains(gatewayReasons(), g.Reason):
		return "action.reason", fmt.Errorf("%q is none of %v", g.Reason, gatewayReasons())
	}
	if text := string(bytes.Trim(g.IssueCRL, `"`)); text != "" && text != "true" && text != "false" {
		return "action.issueCrl", fmt.Errorf("%q is neither true nor false", text)
	}
	if g.CompromiseDate != "" {
		if _, err := isoInstant(g.CompromiseDate); err != nil {
			return "action.compromiseDate", err
		}
	}
	return "", nil
}

// errInState says that a certificate is already what an action would make of it.
var errInState = errors.New("the certificate is in the requested state already")

// act revokes a certificate, holds it, or takes the hold back. A revocation may have to wait for a human, which is the
// fault NeedsApproval on the operation revoke.
func (a *entrustgatewayAPI) act(c *call) reply {
	var in struct {
		Action gatewayAction `json:"action"`
	}
	if wrong, ok := a.decode(c, &in); !ok {
		return wrong
	}
	if target, err := in.Action.check(); err != nil {
		return a.invalid(c, target, err.Error())
	}
	if in.Action.Type == "ReactivateAction" {
		return gatewayProblem(http.StatusNotImplemented, gatewayError{Code: "not-implemented", Message: "the CA cannot reactivate certificates"})
	}
	o, r, ok := a.find(c)
	if !ok {
		return a.problem(http.StatusNotFound, "there is no such certificate")
	}
	in.Action.ID, in.Action.Status = a.sim.store.id(), "COMPLETED"
	status := http.StatusOK
	if in.Action.Type == "RevokeAction" && r.RevokedAt.IsZero() {
		if _, wait := c.fault(NeedsApproval); wait {
			in.Action.Status, status = "ACCEPTED", http.StatusAccepted
		}
	}
	_, err := a.sim.store.update(EntrustGateway, o.ID, func(o *order) error { return in.Action.apply(o, r.ID, c.now) })
	switch {
	case errors.Is(err, errInState) && in.Action.SucceedAnyway != nil && !*in.Action.SucceedAnyway:
		return gatewayProblem(http.StatusBadRequest, gatewayError{Code: "invalid-state", Message: err.Error()})
	case err != nil && !errors.Is(err, errInState):
		return a.problem(http.StatusInternalServerError, err.Error())
	}
	return jsonReply(status, struct {
		Type   string        `json:"type"`
		Action gatewayAction `json:"action"`
	}{"ActionResponse", in.Action})
}

// apply does the action on a copy of the order, or puts it where it waits for a human.
func (g *gatewayAction) apply(o *order, id string, now time.Time) error {
	r, _ := o.request(id)
	held := !r.RevokedAt.IsZero() && r.RevocationReason == certificateHold
	reason := cmp.Or(g.Reason, "unspecified")
	switch {
	case g.Type == "UnholdAction" && !held, g.Type != "UnholdAction" && !r.RevokedAt.IsZero() && (!held || g.Type == "HoldAction"):
		return errInState
	case g.Type == "UnholdAction":
		r.RevokedAt, r.RevocationReason = time.Time{}, ""
		return nil
	case g.Type == "HoldAction":
		reason = certificateHold
	}
	o.Attributes = maps.Clone(o.Attributes)
	o.Attributes["compromise_date:"+id], o.Attributes["comment:"+id] = g.CompromiseDate, g.Comment
	waits := action{ID: g.ID, Type: "revoke", Request: id, Reason: reason, Comment: g.Comment, Asked: now, Status: "pending"}
	if g.Status == "ACCEPTED" {
		o.Actions = append(o.Actions, waits)
		return nil
	}
	if held {
		r.RevocationReason = reason
	}
	r.revoke(now, reason)
	return nil
}

const (
	// gatewayPage is the usual number of events on a page, and gatewayLargest the highest.
	gatewayPage    = 50
	gatewayLargest = 2000
)

// gatewayEvent is something that happened to a certificate.
type gatewayEvent struct {
	Action       string `json:"action"`
	Event        int    `json:"event"`
	EventDate    string `json:"eventDate"`
	Certificate  string `json:"certificate,omitempty"`
	SerialNumber string `json:"serialNumber"`
	Detail       string `json:"detail"`
	Reason       string `json:"reason,omitempty"`

	at      time.Time
	order   *order
	request string
}

// history is all that happened so far, oldest first.
func (a *entrustgatewayAPI) history(now time.Time) []gatewayEvent {
	var all []gatewayEvent
	for _, o := range a.sim.store.all(EntrustGateway) {
		for i := range o.Requests {
			r := &o.Requests[i]
			if o.Forgotten || r.state(now) != Issued {
				continue
			}
			e := gatewayEvent{SerialNumber: strings.ToLower(r.Serial), order: o, request: r.ID}
			e.Action, e.Detail, e.at = "issued", "certificate issued", r.issuedAt(now)
			all = append(all, e)
			if !r.RevokedAt.IsZero() {
				e.Action, e.Detail, e.Reason, e.at = "revoked", "certificate revoked", r.RevocationReason, r.RevokedAt
				all = append(all, e)
			}
		}
	}
	slices.SortStableFunc(all, func(x, y gatewayEvent) int { return x.at.Compare(y.at) })
	return all
}

// events is a feed: nextPageIndex takes the reader on from where he was, today or a month later.
func (a *entrustgatewayAPI) events(c *call) reply {
	from, size, target, err := a.eventQuery(c)
	if err != nil {
		return a.invalid(c, target, err.Error())
	}
	all := a.history(c.now)
	listed := c.listed()
	all = slices.DeleteFunc(all, func(e gatewayEvent) bool { return e.at.After(listed) })
	begin := from.in(all)
	page := all[begin:min(len(all), begin+size)]
	for i := range page {
		e := &page[i]
		e.Event, e.EventDate = begin+i+1, a.sim.said(e.at).Format("2006-01-02T15:04:05.000Z")
		if c.request.URL.Query().Get("$fields") == "-events.certificate" {
			continue
		}
		der, err := a.sim.certificate(e.order, e.request)
		if err != nil {
			return a.problem(http.StatusInternalServerError, err.Error())
		}
		e.Certificate = encodeDER(der)
	}
	return jsonReply(http.StatusOK, struct {
		Type          string         `json:"type"`
		Events        []gatewayEvent `json:"events"`
		MorePages     bool           `json:"morePages"`
		NextPageIndex string         `json:"nextPageIndex"`
	}{"CertificateEventsResponse", append([]gatewayEvent{}, page...), begin+len(page) < len(all), from.past(page).String()})
}

// eventIndex is a place in the feed: behind the first Skip events of a moment, in nanoseconds since 1970. A number of
// the event alone would move when an order is forgotten or a hold is taken back.
type eventIndex struct {
	Moment int64
	Skip   int
}

func (x eventIndex) String() string { return fmt.Sprintf("%d.%d", x.Moment, x.Skip) }

// in gives the number of the first event at or behind the place.
func (x eventIndex) in(all []gatewayEvent) int {
	n, _ := slices.BinarySearchFunc(all, x.Moment, func(e gatewayEvent, moment int64) int { return cmp.Compare(e.at.UnixNano(), moment) })
	for skip := x.Skip; skip > 0 && n < len(all) && all[n].at.UnixNano() == x.Moment; skip-- {
		n++
	}
	return n
}

// past gives the place behind a page that began here.
func (x eventIndex) past(page []gatewayEvent) eventIndex {
	for _, e := range page {
		if moment := e.at.UnixNano(); moment != x.Moment {
			x = eventIndex{Moment: moment}
		}
		x.Skip++
	}
	return x
}

// eventQuery reads where a page begins and how long it is. An error is about the parameter that is named.
func (a *entrustgatewayAPI) eventQuery(c *call) (from eventIndex, size int, target string, err error) {
	q := c.request.URL.Query()
	size = gatewayPage
	if text := q.Get("preferredPageSize"); text != "" {
		if size, err = strconv.Atoi(text); err != nil || size < 1 || size > gatewayLargest {
			return from, 0, "preferredPageSize", fmt.Errorf("%q is not a number between 1 and %d", text, gatewayLargest)
		}
	}
	index, start := q.Get("nextPageIndex"), q.Get("startDate")
	switch {
	case index != "":
		if _, err := fmt.Sscanf(index, "%d.%d", &from.Moment, &from.Skip); err != nil || from.String() != index {
			return from, 0, "nextPageIndex", fmt.Errorf("%q was never given", index)
		}
	case start == "":
		return from, 0, "startDate", errors.New("startDate or nextPageIndex is required")
	default:
		at, err := isoInstant(start)
		if err != nil {
			return from, 0, "startDate", err
		}
		from.Moment = at.Add(-time.Duration(a.sim.clock.Load())).UnixNano()
	}
	return from, size, "", nil
}
