package casimulator

// Example is a scenario that shows how one is written.
const Example = `latency: 30s          # a certificate is issued so long after the order was accepted, or approved
approval: none        # none, manual (control API), or a duration after which a human has approved
clock: 0s             # by how much the CA's clock is off, such as -24h
unlimited: false      # true takes the CA's own rate limits off
seed: 7               # of the random numbers behind probability
faults:
  - ca: digicert                    # one of the CAs, or * (default)
    operation: submit               # one of the operations, or * (default)
    fault: drop_after
    common_name: www.example.com    # only for this name
    times: 1                        # 0, the default, is without end
  - fault: rate_limit
    retry_after: 20s
    retry_after_date: true          # as a date and not in seconds
    probability: 0.05               # 0, the default, is always
`

// Describe says in a line what a kind of fault does. It is empty for what is none.
func Describe(k Kind) string {
	return map[Kind]string{
		Delay:               "wait for `delay` before anything is done",
		DelayAfter:          "do what is asked, and answer after `delay`",
		Hang:                "do nothing and answer nothing until the client leaves",
		RateLimit:           "429, with Retry-After if `retry_after` is set (`retry_after_date`: as a date)",
		ServerError:         "`status` (500) in the CA's form, nothing done; `retry_after` as above",
		ServerErrorAfter:    "do what is asked, then answer `status` (500)",
		ClientError:         "`status` (400) from 400 to 499 in the CA's form, with the CA's own `code` if that is set, nothing done",
		HTMLPage:            "a proxy's page with `status` (502; 200 is possible), nothing done",
		HTMLPageAfter:       "do what is asked, then answer with a proxy's page",
		DropBefore:          "cut the connection, nothing done",
		DropAfter:           "do what is asked, then cut the connection: the reply is lost",
		ReplyTwice:          "give the same reply to the same request when it comes again, and do nothing twice",
		DoubledReply:        "send the reply twice over one connection",
		SlowBytes:           "send the reply in pieces that take `delay` (10s) in all",
		OversizedBody:       "lengthen the reply to `bytes` (64 MiB)",
		MalformedJSON:       "do what is asked, and cut the reply in its middle",
		MTLSRefused:         "refuse client certificates, in the TLS handshake and on open connections",
		TokenExpired:        "forget the session of the request (globalsign)",
		Forgotten:           "deny the order; in lists, leave orders out (with `delay`: only those younger than that)",
		IssueAfter:          "issue the certificate `delay` after the acceptance, or approval, of this order",
		NeedsApproval:       "hold the order until it is approved over the control API, or for `delay`",
		Reject:              "accept the order and reject it after `delay`, for `reason`",
		DuplicateOrder:      "make two orders of one request",
		WrongKey:            "certify another key",
		WrongName:           "certify another name",
		NotYetValid:         "let the certificate begin in a week",
		RootFirst:           "give the bundle beginning with the root",
		MissingIntermediate: "give the bundle without the intermediate",
		WrongSerial:         "state another serial number than the certificate has",
	}[k]
}
