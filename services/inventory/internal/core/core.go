// Package core decides: what may be changed, what follows from it, and what others are told. It knows no SQL and no
// gRPC; requests and answers are the messages of the contract.
package core

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"strings"
	"time"

	"github.com/google/uuid"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/certctl/certctl/pkg/auditlog"
	"github.com/certctl/certctl/pkg/errs"
	"github.com/certctl/certctl/pkg/outbox"
	"github.com/certctl/certctl/pkg/page"
	"github.com/certctl/certctl/pkg/reuse"
	"github.com/certctl/certctl/pkg/rpcctx"
	"github.com/certctl/certctl/pkg/secretbox"
	"github.com/certctl/certctl/pkg/tick"
	issuancev1 "github.com/certctl/certctl/proto/gen/go/certctl/issuance/v1"
	renewalschedulerv1 "github.com/certctl/certctl/proto/gen/go/certctl/renewalscheduler/v1"
	typev1 "github.com/certctl/certctl/proto/gen/go/certctl/type/v1"
	"github.com/certctl/certctl/services/inventory/internal/store"
)

// Names of the services that events go to.
const (
	toIssuance  = "issuance"
	toScheduler = "renewalscheduler"
)

// Resource types of events.
const (
	resourceCertificate = "certificate"
	resourceAgent       = "agent"
	resourceTarget      = "target"
	resourceDeployment  = "deployment"
	resourceJoinToken   = "join_token"
	resourceTask        = "task"
)

// Defaults that a certificate gets that names none.
const (
	DefaultProfile = "prof-default"
	DefaultPolicy  = "pol-default"
)

// Config holds the times and bounds of inventory; the service fills in defaults.
type Config struct {
	AgentJoinTokens    []secretbox.Secret
	AssignmentLease    time.Duration
	DeployMaxAttempts  int32
	DeployDeadline     time.Duration
	RetryBase          time.Duration
	RetryMax           time.Duration
	FailedRetry        time.Duration
	VerifyInterval     time.Duration
	AgentOfflineAfter  time.Duration
	CredentialLifetime time.Duration
}

// TargetValidator checks the configuration of a target without touching any host.
type TargetValidator interface {
	Validate(typ string, config json.RawMessage) error
}

// Deps are what core works with.
type Deps struct {
	Store     *store.Store
	Log       *zap.Logger
	Pages     *page.Codec
	Issuance  issuancev1.IssuanceInternalServiceClient
	Scheduler renewalschedulerv1.SchedulerInternalServiceClient
	Targets   TargetValidator
}

// Core has the decisions of inventory.
type Core struct {
	cfg       Config
	store     *store.Store
	log       *zap.Logger
	pages     *page.Codec
	issuance  issuancev1.IssuanceInternalServiceClient
	scheduler renewalschedulerv1.SchedulerInternalServiceClient
	targets   TargetValidator
	summary   *reuse.Value[store.Summary]
	together  *together
}

// New makes a Core.
func New(cfg Config, deps Deps) *Core {
	c := &Core{
		cfg: cfg, store: deps.Store, log: deps.Log, pages: deps.Pages, issuance: deps.Issuance, scheduler: deps.Scheduler, targets: deps.Targets,
	}
	c.together = newTogether(c)
	c.summary = reuse.New(reuse.Config{}, c.countAll)
	return c
}

// ownID is what users may name their resources.
var ownID = regexp.MustCompile(`^[a-z0-9](-?[a-z0-9])*$`)

const (
	minOwnID = 3
	maxOwnID = 63
)

// checkID adds a violation for an id that a user may not choose; an empty one is made by the server.
func checkID(v *errs.Violations, id string) {
	if id != "" && (len(id) < minOwnID || len(id) > maxOwnID || !ownID.MatchString(id)) {
		v.Add("id", "must have 3 to 63 lower-case letters, digits and single hyphens between them")
	}
}

const (
	maxName       = 253
	maxLabelKey   = 63
	maxLabelValue = 255
)

func checkName(v *errs.Violations, name string) {
	switch {
	case strings.TrimSpace(name) == "":
		v.Add("name", "is required")
	case len(name) > maxName:
		v.Add("name", "is longer than %d bytes", maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }):
		v.Add("name", "has control characters")
	}
}

func checkLabels(v *errs.Violations, labels map[string]string) {
	for key, value := range labels {
		if key == "" || len(key) > maxLabelKey {
			v.Add("labels", "key %q must have 1 to %d bytes", key, maxLabelKey)
		}
		if len(value) > maxLabelValue {
			v.Add("labels", "value of %q is longer than %d bytes", key, maxLabelValue)
		}
		// Postgres cannot store NUL in text or JSON.
		if strings.ContainsRune(key, 0) || strings.ContainsRune(value, 0) {
			v.Add("labels", "%q holds a NUL character", key)
		}
	}
}

// newID makes an id with a prefix such as "cert".
func newID(prefix string) (string, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return "", err
	}
	if prefix == "" {
		return id.String(), nil
	}
	return prefix + "-" + id.String(), nil
}

func notFound(resource, id string) error {
	reason := strings.ToUpper(strings.ReplaceAll(resource, " ", "_")) + "_NOT_FOUND"
	return errs.New(errs.NotFound, reason, "%s %s not found", resource, id)
}

// found turns a missing row into the error that names the resource.
func found[T any](v T, err error, resource, id string) (T, error) {
	if errors.Is(err, store.ErrNotFound) {
		return v, notFound(resource, id)
	}
	return v, err
}

func wrongState(resource, id, status, why string) error {
	return errs.New(errs.Conflict, strings.ToUpper(resource)+"_WRONG_STATE", "%s %s is %s: %s", resource, id, status, why).With("state", status)
}

// audit emits the record of a change. Data holds no secrets.
func audit(ctx context.Context, t *store.Tx, action, resourceType, resourceID string, data map[string]any) {
	for key, v := range data {
		if texts, ok := v.([]string); ok {
			data[key] = anys(texts)
		}
	}
	t.Emit(auditlog.Event(ctx, auditlog.Entry{Action: action, ResourceType: resourceType, ResourceID: resourceID, Data: data}))
}

// anys gives texts as JSON has them.
func anys(texts []string) []any {
	out := make([]any, 0, len(texts))
	for _, t := range texts {
		out = append(out, t)
	}
	return out
}

// tell emits an event for another service.
func tell(t *store.Tx, to, typ, resourceType, resourceID string, payload proto.Message) {
	t.Emit(outbox.Event{Type: typ, ResourceType: resourceType, ResourceID: resourceID, Destination: to, Payload: payload})
}

// actor is who acts, as events name it.
func actor(ctx context.Context) *typev1.Actor { return auditlog.Actor(rpcctx.Actor(ctx)) }

// jitterShare is how much of a wait is random, either way.
const jitterShare = 0.2

func jittered(d time.Duration) time.Duration { return tick.Jittered(d, jitterShare) }

// backoff is the wait after the given number of failed tries.
func (c *Core) backoff(attempt int32) time.Duration {
	d := c.cfg.RetryBase
	for i := int32(1); i < attempt && d < c.cfg.RetryMax; i++ {
		d *= 2
	}
	return jittered(min(d, c.cfg.RetryMax))
}

// pageOf is what all lists have in common.
type pageOf[T any] struct {
	rows  []T
	next  string
	total *int32
}

// listRequest is what every list request has.
type listRequest interface {
	proto.Message
	GetPageSize() int32
	GetPageToken() string
}

// lister says how one collection is listed.
type lister[T any] struct {
	collection string
	rows       func(ctx context.Context, s store.Slice) ([]T, error)
	count      func(ctx context.Context) (int32, error)
	// cursor gives the key of a row in the order of a field, and its id.
	cursor func(row T, field string) (key, id page.Value)
}

func listPage[T any](ctx context.Context, c *Core, req listRequest, l lister[T]) (pageOf[T], error) {
	var out pageOf[T]
	size, err := page.Size(req.GetPageSize())
	if err != nil {
		return out, err
	}
	orderBy := ""
	if r, ok := req.(interface{ GetOrderBy() string }); ok {
		orderBy = r.GetOrderBy()
	}
	order, err := c.store.SortingOf(l.collection).Parse(orderBy)
	if err != nil {
		return out, err
	}
	scope := page.Scope{Collection: l.collection, Filters: page.FiltersOf(req), Order: order.String()}
	after, err := c.pages.Decode(req.GetPageToken(), scope)
	if err != nil {
		return out, err
	}
	rows, err := l.rows(ctx, store.Slice{Order: order, After: after, Limit: size + 1})
	if err != nil {
		return out, err
	}
	kept, more := page.Cut(rows, size)
	out.rows = kept
	if more {
		out.next = c.pages.Encode(scope, order.Cursor(l.cursor(kept[len(kept)-1], order.Field())))
	}
	if r, ok := req.(interface{ GetIncludeTotal() bool }); ok && r.GetIncludeTotal() {
		total, err := l.count(ctx)
		if err != nil {
			return out, err
		}
		out.total = &total
	}
	return out, nil
}

// enumNames gives the stored names of enum values. The value 0 and values that this version does not know are refused.
func enumNames[E ~int32](values []E, names map[int32]string) ([]string, error) {
	out := make([]string, 0, len(values))
	for i, v := range values {
		name, ok := names[int32(v)]
		if !ok || v == 0 {
			var bad errs.Violations
			bad.Add("status", "value %d at place %d is not a status", int32(v), i)
			return nil, bad.Err()
		}
		out = append(out, name)
	}
	return out, nil
}
