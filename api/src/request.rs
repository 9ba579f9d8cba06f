//! The body of a submission: read strictly, checked whole, before anything is stored.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use quayside_shared::config::Config;
use quayside_shared::ids::{ConversationId, RunId, UserId};
use quayside_shared::store::{Idempotency, MultitaskStrategy, NewRun};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, SchemaType, Type};

use crate::error::{ApiError, Result};
use crate::inputs::{self, InputFile};

/// The longest time that a run may be told to wait for its start, seconds: a week.
const QUEUE_TTL_MAX: u64 = 604_800;
const METADATA_PAIRS_MAX: usize = 16;
const METADATA_KEY_MAX_CHARS: usize = 64;
const METADATA_VALUE_MAX_CHARS: usize = 512;

/// What to do when the conversation is busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = MultitaskStrategy)]
pub(crate) enum Strategy {
    /// Wait for its turn: the default.
    Enqueue,
    /// Refuse the new run.
    Reject,
    /// Cancel the unfinished ones and keep them.
    Interrupt,
    /// Cancel the unfinished ones and drop them from the history.
    Rollback,
}

impl From<Strategy> for MultitaskStrategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Enqueue => Self::Enqueue,
            Strategy::Reject => Self::Reject,
            Strategy::Interrupt => Self::Interrupt,
            Strategy::Rollback => Self::Rollback,
        }
    }
}

/// A message for an agent. An optional field that is null counts as absent.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(example = json!({"message": "print('hello')"}))]
pub(crate) struct SubmitRequest {
    /// Delivered to the agent byte for byte. The limit counts bytes of UTF-8.
    #[schema(min_length = 1)]
    message: String,
    /// The conversation that it joins; opened when it is not there. Without it: a new one.
    #[schema(pattern = "^[A-Za-z0-9_-]{1,64}$")]
    conversation_id: Option<String>,
    /// Who shall answer. Without it: the configured default.
    agent: Option<String>,
    /// What to do when the conversation is busy.
    multitask_strategy: Option<Strategy>,
    /// Wall-clock limit of the run; at most the agent's own, which is the default.
    #[schema(minimum = 1)]
    timeout_seconds: Option<u64>,
    /// Expire the run when it has not started within this time.
    #[schema(minimum = 1, maximum = 604_800)]
    queue_ttl_seconds: Option<u64>,
    #[schema(schema_with = metadata_schema)]
    metadata: Option<Metadata>,
    // Absent in what is hashed when there are none: keys from before there were files stay what they were.
    #[schema(schema_with = inputs::schema)]
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<InputFile>>,
}

fn metadata_schema() -> Schema {
    let no_controls = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$";
    let key = ObjectBuilder::new().schema_type(Type::String).min_length(Some(1)).max_length(Some(METADATA_KEY_MAX_CHARS)).pattern(Some(no_controls));
    let value = ObjectBuilder::new().schema_type(Type::String).max_length(Some(METADATA_VALUE_MAX_CHARS)).pattern(Some(no_controls)).build();
    ObjectBuilder::new()
        .schema_type(SchemaType::Array(vec![Type::Object, Type::Null]))
        .description(Some("Your own words, given back with the run"))
        .max_properties(Some(METADATA_PAIRS_MAX))
        .property_names(Some(Schema::Object(key.build())))
        .additional_properties(Some(AdditionalProperties::RefOr(Schema::Object(value).into())))
        .into()
}

impl SubmitRequest {
    /// Reads a body. Broken JSON is told from JSON that says the wrong thing, also when both are wrong.
    pub(crate) fn read(body: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(body).map_err(|_| ApiError::InvalidJson("the body is not UTF-8".to_owned()))?;
        if body.is_empty() {
            return Err(ApiError::InvalidJson("the body is empty".to_owned()));
        }
        let mut reader = serde_json::Deserializer::from_str(text);
        let read = serde_path_to_error::deserialize(&mut reader);
        let fault = match read {
            Ok(request) => return reader.end().map(|()| request).map_err(|error| ApiError::InvalidJson(error.to_string())),
            Err(fault) => fault,
        };
        // Read again without expectations: only what is JSON at all can be wrong JSON.
        if let Err(error) = serde_json::from_str::<serde_json::Value>(text) {
            return Err(ApiError::InvalidJson(error.to_string()));
        }
        let (path, detail) = (fault.path().to_string(), fault.into_inner().to_string());
        Err(ApiError::invalid(field_at_fault(&path, &detail), detail))
    }

    /// What makes two submissions the same, whatever their white space and the order of their keys.
    fn hash(&self) -> Result<[u8; 32]> {
        let canonical = serde_json::to_vec(self).map_err(|_| ApiError::Internal("a request cannot be written again"))?;
        Ok(Sha256::digest(canonical).into())
    }

    /// Checks every field and fills in what is missing.
    pub(crate) fn check(self, user_id: UserId, key: Option<String>, config: &Config) -> Result<NewRun> {
        let idempotency = key.map(|key| self.hash().map(|body_hash| Idempotency { key, body_hash })).transpose()?;
        let limit = usize::try_from(config.limits.message.bytes()).unwrap_or(usize::MAX);
        if self.message.is_empty() || self.message.len() > limit {
            return Err(ApiError::invalid("message", format!("must be 1 to {limit} bytes of UTF-8")));
        }
        let conversation_id = match self.conversation_id {
            Some(id) => id.parse::<ConversationId>().map_err(|error| ApiError::invalid("conversationId", error.to_string()))?,
            None => ConversationId::random(),
        };
        let agent = match self.agent {
            Some(name) => {
                let known = name.parse().ok().and_then(|name| config.agents.get(&name));
                known.ok_or_else(|| ApiError::invalid("agent", "there is no such agent; GET /api/agents lists them"))?
            }
            None => config.agents.get(&config.api.default_agent).ok_or(ApiError::Internal("the default agent is not configured"))?,
        };
        let timeout = match self.timeout_seconds {
            None => agent.timeout,
            Some(seconds) if seconds >= 1 && Duration::from_secs(seconds) <= agent.timeout => Duration::from_secs(seconds),
            Some(_) => {
                let max = agent.timeout.as_secs();
                return Err(ApiError::invalid("timeoutSeconds", format!("must be 1 to {max}, the limit of agent `{}`", agent.name)));
            }
        };
        let queue_ttl = match self.queue_ttl_seconds {
            None => None,
            Some(seconds @ 1..=QUEUE_TTL_MAX) => Some(Duration::from_secs(seconds)),
            Some(_) => return Err(ApiError::invalid("queueTtlSeconds", format!("must be 1 to {QUEUE_TTL_MAX}"))),
        };
        let metadata = self.metadata.map(|metadata| metadata.0).unwrap_or_default();
        check_metadata(&metadata)?;
        Ok(NewRun {
            id: RunId::random(),
            user_id,
            conversation_id,
            agent: agent.name.clone(),
            message: self.message,
            multitask: self.multitask_strategy.map(Into::into).unwrap_or_default(),
            timeout,
            queue_ttl,
            metadata,
            files: self.files.map(inputs::check).transpose()?.unwrap_or_default(),
            idempotency,
        })
    }
}

fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<()> {
    if metadata.len() > METADATA_PAIRS_MAX {
        return Err(ApiError::invalid("metadata", format!("must be at most {METADATA_PAIRS_MAX} pairs")));
    }
    let fits = |text: &str, max: usize| !text.chars().any(char::is_control) && text.chars().nth(max).is_none();
    for (key, value) in metadata {
        if key.is_empty() || !fits(key, METADATA_KEY_MAX_CHARS) {
            let rule = format!("a key must be 1 to {METADATA_KEY_MAX_CHARS} characters, none of them a control character");
            return Err(ApiError::invalid("metadata", rule));
        }
        if !fits(value, METADATA_VALUE_MAX_CHARS) {
            let rule = format!("must be at most {METADATA_VALUE_MAX_CHARS} characters, none of them a control character");
            return Err(ApiError::invalid(format!("metadata.{key}"), rule));
        }
    }
    Ok(())
}

/// The path that the parser was on; for a field that is unknown, missing or there twice it is still on the parent, and
/// the message names it.
fn field_at_fault(path: &str, detail: &str) -> String {
    let named = ["unknown field `", "missing field `", "duplicate field `"].iter().find_map(|start| detail.strip_prefix(start)?.split('`').next());
    match (path, named) {
        (".", Some(field)) => field.to_owned(),
        (".", None) => "body".to_owned(),
        (path, Some(field)) if path != field && !path.ends_with(&format!(".{field}")) => format!("{path}.{field}"),
        (path, _) => path.to_owned(),
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    Message,
    ConversationId,
    Agent,
    MultitaskStrategy,
    TimeoutSeconds,
    QueueTtlSeconds,
    Metadata,
    Files,
}

/// Written by hand because a derived one also takes an array for the object.
impl<'de> Deserialize<'de> for SubmitRequest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = SubmitRequest;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with `message`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SubmitRequest, A::Error> {
                fn once<'de, A: MapAccess<'de>, T: Deserialize<'de>>(slot: &mut Option<T>, name: &'static str, map: &mut A) -> Result<(), A::Error> {
                    if slot.is_some() {
                        return Err(A::Error::duplicate_field(name));
                    }
                    *slot = Some(map.next_value()?);
                    Ok(())
                }
                let (mut message, mut conversation_id, mut agent, mut strategy) = (None, None, None, None);
                let (mut timeout, mut ttl, mut metadata, mut files) = (None, None, None, None);
                while let Some(field) = map.next_key()? {
                    match field {
                        Field::Message => once(&mut message, "message", &mut map)?,
                        Field::ConversationId => once(&mut conversation_id, "conversationId", &mut map)?,
                        Field::Agent => once(&mut agent, "agent", &mut map)?,
                        Field::MultitaskStrategy => once(&mut strategy, "multitaskStrategy", &mut map)?,
                        Field::TimeoutSeconds => once(&mut timeout, "timeoutSeconds", &mut map)?,
                        Field::QueueTtlSeconds => once(&mut ttl, "queueTtlSeconds", &mut map)?,
                        Field::Metadata => once(&mut metadata, "metadata", &mut map)?,
                        Field::Files => once(&mut files, "files", &mut map)?,
                    }
                }
                Ok(SubmitRequest {
                    message: message.ok_or_else(|| A::Error::missing_field("message"))?,
                    conversation_id: conversation_id.flatten(),
                    agent: agent.flatten(),
                    multitask_strategy: strategy.flatten(),
                    timeout_seconds: timeout.flatten(),
                    queue_ttl_seconds: ttl.flatten(),
                    metadata: metadata.flatten(),
                    files: files.flatten(),
                })
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

/// A map that refuses a key that is there twice: the first reader of such a body could see one value, the next another.
#[derive(Debug, Default, Serialize)]
#[serde(transparent)]
struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if pairs.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key is there twice"));
                    }
                }
                Ok(Metadata(pairs))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

/// The largest body that can hold an allowed message: every byte written as `\u00XX`, and room for the rest.
fn message_limit(config: &Config) -> usize {
    usize::try_from(config.limits.message.bytes()).unwrap_or(usize::MAX).saturating_mul(6).saturating_add(64 << 10)
}

/// The largest body that is read: with room for files.
pub(crate) fn body_limit(config: &Config) -> usize {
    message_limit(config).saturating_add(inputs::BODY)
}

/// Kept apart from reading so that a body is parsed where it lies.
pub(crate) fn parse(body: &Bytes, user: UserId, key: Option<String>, config: &Config) -> Result<NewRun> {
    let (request, limit) = (SubmitRequest::read(body)?, message_limit(config));
    // The room for files is theirs alone.
    if request.files.is_none() && body.len() > limit {
        return Err(ApiError::BodyTooLarge { limit });
    }
    request.check(user, key, config)
}
