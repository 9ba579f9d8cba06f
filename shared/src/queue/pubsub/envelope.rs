//! A message as Pub/Sub carries it: the run id as data, the trace context as attributes, nothing else.

use std::collections::BTreeMap;

use google_cloud_pubsub::model::Message as Envelope;

use crate::ids::RunId;
use crate::queue::{Message, Undecodable};

/// The attributes of the trace context; others, which the service or a stranger added, are not ours to pass on.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];
/// What Pub/Sub takes: a longer value refuses the whole message.
const MAX_VALUE: usize = 1024;

/// A trace context that the service would refuse is left out: a trace is worth less than a run.
pub(super) fn encode(message: &Message) -> Envelope {
    let trace = message.trace.iter().filter(|(name, value)| TRACE.contains(&name.as_str()) && value.len() <= MAX_VALUE);
    Envelope::new().set_data(message.run_id.as_str().to_owned()).set_attributes(trace.map(|(name, value)| (name.clone(), value.clone())))
}

/// The message, or why this is none.
pub(super) fn decode(envelope: Envelope) -> Result<Message, Undecodable> {
    match run_id(&envelope.data) {
        Ok(run_id) => {
            let trace: BTreeMap<String, String> =
                TRACE.iter().filter_map(|name| Some(((*name).to_owned(), envelope.attributes.get(*name)?.clone()))).collect();
            Ok(Message { run_id, trace })
        }
        Err(reason) => Err(Undecodable { message_id: envelope.message_id, reason, data: envelope.data.to_vec() }),
    }
}

fn run_id(data: &[u8]) -> Result<RunId, String> {
    let text = std::str::from_utf8(data).map_err(|_| "the data is not UTF-8".to_owned())?;
    text.parse().map_err(|error| format!("the data is not a run id: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_arrives() {
        let mut message = Message::new(RunId::random());
        message.trace.insert("traceparent".into(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        message.trace.insert("tracestate".into(), "vendor=1".into());
        let mut envelope = encode(&message);
        assert_eq!(envelope.attributes.len(), 2);
        envelope.attributes.insert("CloudPubSubDeadLetterSourceDeliveryCount".into(), "5".into());
        assert_eq!(decode(envelope).unwrap(), message);
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
            let error = decode(Envelope::new().set_data(data.to_vec()).set_message_id("7")).unwrap_err();
            assert!(error.reason.contains(reason), "{error:?}");
            assert_eq!((error.message_id.as_str(), error.data.as_slice()), ("7", data));
        }
    }
}
