package casimulator

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"
)

// globalSignTokenLifetime is how long a login lasts.
const globalSignTokenLifetime = 10 * time.Minute

// Why a token is refused: it never was one, which is a mistake of the client, or its time is over, which is not.
var (
	errTokenUnknown = errors.New("the access token is not one of ours")
	errTokenExpired = errors.New("the access token has expired")
)

// tokenClaims is what a token says. It is signed, so that it outlives a restart, as JSON web tokens do.
type tokenClaims struct {
	ID      string `json:"jti"`
	Expires int64  `json:"exp"`
}

// newToken makes a JSON web token (RFC 7519, HS256).
func (a *globalsignAPI) newToken(now time.Time) string {
	claims, _ := json.Marshal(tokenClaims{ID: rand.Text(), Expires: now.Add(globalSignTokenLifetime).Unix()}) // never fails
	signed := segment([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + segment(claims)
	return signed + "." + segment(a.mac(signed))
}

func segment(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// mac is under a key that belongs to the CA, so that the same directory takes the same tokens.
func (a *globalsignAPI) mac(text string) []byte {
	secret, _ := a.sim.authority.root.key.Bytes() // fails only for curves that it is not on
	key := sha256.Sum256(append([]byte("token"), secret...))
	h := hmac.New(sha256.New, key[:])
	h.Write([]byte(text))
	return h.Sum(nil)
}

// readToken gives what a token says that is valid at a time of the CA's clock.
func (a *globalsignAPI) readToken(token string, now time.Time) (tokenClaims, error) {
	var claims tokenClaims
	at := strings.LastIndexByte(token, '.')
	if at < 0 || !hmac.Equal([]byte(segment(a.mac(token[:at]))), []byte(token[at+1:])) {
		return claims, errTokenUnknown
	}
	_, payload, _ := strings.Cut(token[:at], ".")
	raw, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil || json.Unmarshal(raw, &claims) != nil {
		return claims, errTokenUnknown
	}
	a.mu.Lock()
	_, ended := a.ended[claims.ID]
	a.mu.Unlock()
	if ended || now.Unix() >= claims.Expires {
		return claims, errTokenExpired
	}
	return claims, nil
}

// end ends a token before its time.
func (a *globalsignAPI) end(claims tokenClaims, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id, until := range a.ended {
		if until.Before(now) {
			delete(a.ended, id)
		}
	}
	a.ended[claims.ID] = time.Unix(claims.Expires, 0)
}

// authorised lets through who has a token.
func (a *globalsignAPI) authorised(h func(*call) reply) func(*call) reply {
	return func(c *call) reply {
		token, ok := strings.CutPrefix(c.request.Header.Get("Authorization"), "Bearer ")
		if !ok {
			return c.refuse(http.StatusUnauthorized, "there is no access token; log in first")
		}
		now := a.sim.said(c.now)
		claims, err := a.readToken(token, now)
		if errors.Is(err, errTokenUnknown) {
			return c.refuse(http.StatusUnauthorized, "%v", err)
		}
		if err == nil {
			if _, expire := c.fault(TokenExpired); expire {
				a.end(claims, now)
				err = errTokenExpired
			}
		}
		if err != nil {
			return a.problem(http.StatusUnauthorized, err.Error())
		}
		return h(c)
	}
}
