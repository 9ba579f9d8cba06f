//! The caller's W3C trace context, handed on with the message: <https://www.w3.org/TR/trace-context/>.

use std::collections::BTreeMap;

use http::HeaderMap;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Vendors must hand on at least 512 characters, and nobody sends more.
const TRACESTATE_MAX: usize = 512;

/// `traceparent` and `tracestate` as they came. What is not well-formed is left out, as the specification wants: a trace
/// is never a reason to refuse a request.
pub(crate) fn context(headers: &HeaderMap) -> BTreeMap<String, String> {
    let one = |name: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let mut context = BTreeMap::new();
    if let Some(parent) = one(TRACEPARENT).filter(|parent| is_parent(parent)) {
        context.insert(TRACEPARENT.to_owned(), parent);
        if let Some(state) = one(TRACESTATE).filter(|state| !state.is_empty() && state.len() <= TRACESTATE_MAX) {
            context.insert(TRACESTATE.to_owned(), state);
        }
    }
    context
}

/// Version 00: `00-<32 hex>-<16 hex>-<2 hex>`, neither id all zeros.
fn is_parent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length: usize| part.len() == length && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let id = |part: &str, length: usize| hex(part, length) && part.bytes().any(|b| b != b'0');
    matches!(parts[..], ["00", trace, span, flags] if id(trace, 32) && id(span, 16) && hex(flags, 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn of(pairs: &[(&'static str, &str)]) -> Vec<String> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        context(&headers).into_values().collect()
    }

    #[test]
    fn a_trace_is_handed_on_as_it_came_and_a_bad_one_is_left_out() {
        assert_eq!(of(&[(TRACEPARENT, PARENT), (TRACESTATE, "a=1")]), [PARENT, "a=1"]);
        assert_eq!(of(&[(TRACESTATE, "a=1")]), [""; 0]);
        let zeros = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        for bad in
            ["", "x", zeros, &PARENT[1..], &PARENT.to_uppercase(), &format!("{PARENT}-1"), "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"]
        {
            assert_eq!(of(&[(TRACEPARENT, bad)]), [""; 0], "{bad}");
        }
        assert_eq!(of(&[(TRACEPARENT, PARENT), (TRACEPARENT, PARENT)]), [""; 0], "two are none");
        assert_eq!(of(&[(TRACEPARENT, PARENT), (TRACESTATE, &"x".repeat(513))]), [PARENT]);
    }
}
