//! A message as Pub/Sub carries it: the run id as data, the trace context as attributes, nothing else.

use std::collections::BTreeMap;

use google_cloud_pubsub::model::Message as Envelope;

use crate::queue::Message;

/// The attributes of the trace context; others, which the service or a stranger added, are not ours to pass on.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];
/// Why a dead letter is one.
pub(super) const REASON: &str = "reason";
/// What Pub/Sub takes: longer values and more attributes refuse the whole message.
const MAX_VALUE: usize = 1024;
const MAX_ATTRIBUTES: usize = 100;

/// A trace context that the service would refuse is left out: a trace is worth less than a run.
pub(super) fn encode(message: &Message) -> Envelope {
    let trace = message.trace.iter().filter(|(name, value)| TRACE.contains(&name.as_str()) && value.len() <= MAX_VALUE);
    Envelope::new().set_data(message.run_id.as_str().to_owned()).set_attributes(trace.map(|(name, value)| (name.clone(), value.clone())))
}

/// The message, or why this is none.
pub(super) fn decode(envelope: &Envelope) -> Result<Message, String> {
    let text = std::str::from_utf8(&envelope.data).map_err(|_| "the data is not UTF-8".to_owned())?;
    let run_id = text.parse().map_err(|error| format!("the data is not a run id: {error}"))?;
    let trace: BTreeMap<String, String> =
        TRACE.iter().filter_map(|name| Some(((*name).to_owned(), envelope.attributes.get(*name)?.clone()))).collect();
    Ok(Message { run_id, trace })
}

/// The same data and attributes with the reason.
pub(super) fn dead_letter(mut envelope: Envelope, reason: &str) -> Envelope {
    let mut attributes: Vec<(String, String)> = envelope.attributes.drain().filter(|(name, _)| name != REASON).collect();
    attributes.sort();
    attributes.truncate(MAX_ATTRIBUTES - 1);
    attributes.push((REASON.to_owned(), reason.to_owned()));
    Envelope::new().set_data(envelope.data).set_attributes(attributes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::RunId;

    #[test]
    fn what_is_sent_is_what_arrives() {
        let mut message = Message::new(RunId::random());
        message.trace.insert("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        message.trace.insert("tracestate".into(), "vendor=1".into());
        let mut envelope = encode(&message);
        assert_eq!(envelope.attributes.len(), 2);
        envelope.attributes.insert("CloudPubSubDeadLetterSourceDeliveryCount".into(), "5".into());
        assert_eq!(decode(&envelope).unwrap(), message);
    }

    #[test]
    fn a_trace_that_the_service_would_refuse_stays_behind() {
        let mut message = Message::new(RunId::random());
        message.trace.insert("tracestate".into(), "x".repeat(MAX_VALUE + 1));
        message.trace.insert("googclient_x".into(), "reserved".into());
        assert!(encode(&message).attributes.is_empty());
    }

    #[test]
    fn what_names_no_run_says_why() {
        for (data, reason) in [(&b"\xff"[..], "UTF-8"), (b"", "run id"), (b"run_short", "run id"), (b"{\"run\":1}", "run id")] {
            let error = decode(&Envelope::new().set_data(data.to_vec())).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_dead_letter_keeps_what_it_was_within_the_limits() {
        let original = Envelope::new().set_data("x").set_attributes((0..MAX_ATTRIBUTES).map(|n| (format!("k{n:03}"), n.to_string())));
        let letter = dead_letter(original, "because");
        assert_eq!(letter.data, "x");
        assert_eq!(letter.attributes.len(), MAX_ATTRIBUTES);
        assert_eq!(letter.attributes["k000"], "0");
        assert_eq!(letter.attributes[REASON], "because");
    }
}
