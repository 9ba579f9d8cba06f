//! Records as Firestore keeps them: serde's JSON on our side, Firestore's values on the other.
//!
//! Written out instead of taken from the client crate's serde, which drops nulls inside arrays, wraps large numbers and
//! stores times as text. Times become real timestamps, so that TTL policies and listening pages can use them.

use std::collections::HashMap;

use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::{ArrayValue, MapValue, Value};
use firestore::gcloud_sdk::prost_types;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};

/// A document's fields.
pub(super) type Fields = HashMap<String, Value>;

/// Fields that hold a time, wherever they stand.
const TIMES: [&str; 12] = [
    "createdAt",
    "updatedAt",
    "startedAt",
    "finishedAt",
    "expireAt",
    "endedAt",
    "expiresAt",
    "notBefore",
    "startBy",
    "publishedAt",
    "redrivenAt",
    "seenAt",
];
/// The client's own words: kept as JSON text, because Firestore refuses some names of fields.
const FREE: &str = "metadata";
const FREE_AS_TEXT: &str = "metadataJson";

/// The fields of `record`, which must be a struct.
pub(super) fn encode(record: &impl Serialize) -> Result<Fields> {
    let json = serde_json::to_value(record).map_err(|error| unwritable().with_source(error))?;
    let Json::Object(mut map) = json else { return Err(unwritable()) };
    if let Some(free) = map.remove(FREE) {
        map.insert(FREE_AS_TEXT.to_owned(), Json::String(free.to_string()));
    }
    fields(map)
}

/// The record in `fields`.
pub(super) fn decode<T: DeserializeOwned>(name: &str, fields: Fields) -> Result<T> {
    let corrupt = || Error::new(ErrorKind::Corrupt, format!("the document {name} is not what Quayside writes"));
    let mut map: Map<String, Json> = fields.into_iter().map(|(key, value)| (key, json(value))).collect();
    if let Some(Json::String(text)) = map.remove(FREE_AS_TEXT) {
        map.insert(FREE.to_owned(), serde_json::from_str(&text).map_err(|error| corrupt().with_source(error))?);
    }
    serde_json::from_value(Json::Object(map)).map_err(|error| corrupt().with_source(error))
}

fn unwritable() -> Error {
    Error::new(ErrorKind::Internal, "a record cannot be written as a document")
}

fn fields(map: Map<String, Json>) -> Result<Fields> {
    map.into_iter()
        .map(|(key, json)| {
            let value = match json {
                Json::String(text) if TIMES.contains(&key.as_str()) => time_of(&text)?,
                json => value(json)?,
            };
            Ok((key, value))
        })
        .collect()
}

fn value(json: Json) -> Result<Value> {
    let kind = match json {
        Json::Null => ValueType::NullValue(0),
        Json::Bool(value) => ValueType::BooleanValue(value),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => ValueType::IntegerValue(integer),
            // A u64 that does not fit would wrap in Firestore without a word.
            (None, Some(float)) if !number.is_u64() => ValueType::DoubleValue(float),
            _ => return Err(unwritable()),
        },
        Json::String(text) => ValueType::StringValue(text),
        Json::Array(items) => ValueType::ArrayValue(ArrayValue { values: items.into_iter().map(value).collect::<Result<_>>()? }),
        Json::Object(map) => ValueType::MapValue(MapValue { fields: fields(map)? }),
    };
    Ok(Value { value_type: Some(kind) })
}

fn time_of(text: &str) -> Result<Value> {
    let time: Timestamp = serde_json::from_value(Json::String(text.to_owned())).map_err(|error| unwritable().with_source(error))?;
    Ok(time_value(time))
}

/// A time as Firestore keeps it.
pub(super) fn time_value(time: Timestamp) -> Value {
    let millis = time.as_millis();
    let nanos = i32::try_from(millis.rem_euclid(1000) * 1_000_000).unwrap_or(0);
    Value { value_type: Some(ValueType::TimestampValue(prost_types::Timestamp { seconds: millis.div_euclid(1000), nanos })) }
}

/// A text as Firestore keeps it.
pub(super) fn text_value(text: impl Into<String>) -> Value {
    Value { value_type: Some(ValueType::StringValue(text.into())) }
}

/// A whole number as Firestore keeps it.
pub(super) fn integer_value(number: i64) -> Value {
    Value { value_type: Some(ValueType::IntegerValue(number)) }
}

/// Bytes as Firestore keeps them.
pub(super) fn bytes_value(bytes: Vec<u8>) -> Value {
    Value { value_type: Some(ValueType::BytesValue(bytes)) }
}

/// The bytes in a field.
pub(super) fn bytes_in<'a>(fields: &'a Fields, key: &str) -> Option<&'a [u8]> {
    match fields.get(key)?.value_type.as_ref()? {
        ValueType::BytesValue(bytes) => Some(bytes),
        _ => None,
    }
}

/// The text in a field.
pub(super) fn text_in<'a>(fields: &'a Fields, key: &str) -> Option<&'a str> {
    match fields.get(key)?.value_type.as_ref()? {
        ValueType::StringValue(text) => Some(text),
        _ => None,
    }
}

/// The whole number in a field.
pub(super) fn integer_in(fields: &Fields, key: &str) -> Option<i64> {
    match fields.get(key)?.value_type.as_ref()? {
        ValueType::IntegerValue(number) => Some(*number),
        _ => None,
    }
}

/// The time in a field.
pub(super) fn time_in(fields: &Fields, key: &str) -> Option<Timestamp> {
    match fields.get(key)?.value_type.as_ref()? {
        ValueType::TimestampValue(time) => Some(timestamp(time)),
        _ => None,
    }
}

fn timestamp(time: &prost_types::Timestamp) -> Timestamp {
    Timestamp::from_millis(time.seconds.saturating_mul(1000).saturating_add(i64::from(time.nanos) / 1_000_000))
}

fn json(value: Value) -> Json {
    match value.value_type {
        None | Some(ValueType::NullValue(_)) => Json::Null,
        Some(ValueType::BooleanValue(value)) => Json::Bool(value),
        Some(ValueType::IntegerValue(value)) => value.into(),
        Some(ValueType::DoubleValue(value)) => value.into(),
        Some(ValueType::StringValue(text)) => Json::String(text),
        Some(ValueType::TimestampValue(time)) => Json::String(timestamp(&time).to_string()),
        Some(ValueType::ArrayValue(array)) => Json::Array(array.values.into_iter().map(json).collect()),
        Some(ValueType::MapValue(map)) => Json::Object(map.fields.into_iter().map(|(key, value)| (key, json(value))).collect()),
        // Kinds that no record has: bytes, references, places.
        Some(_) => Json::Null,
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Record {
        created_at: Timestamp,
        not_before: Option<Timestamp>,
        list: Vec<Option<u64>>,
        share: f64,
        text: String,
        metadata: std::collections::BTreeMap<String, String>,
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let record = Record {
            created_at: Timestamp::from_millis(1_700_000_000_123),
            not_before: None,
            list: vec![Some(1), None, Some(i64::MAX as u64)],
            share: 0.5,
            text: "\0 한글".into(),
            metadata: [("__name__", "1"), ("", "2"), ("createdAt", "3")].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        };
        let fields = encode(&record).unwrap();
        assert!(matches!(fields["createdAt"].value_type, Some(ValueType::TimestampValue(_))), "a real timestamp");
        assert!(matches!(fields["notBefore"].value_type, Some(ValueType::NullValue(_))), "an absent value is null");
        assert_eq!(decode::<Record>("x", fields).unwrap(), record);
    }

    #[test]
    fn a_number_that_would_wrap_is_refused() {
        assert!(encode(&serde_json::json!({ "n": u64::MAX })).is_err());
        assert!(decode::<Record>("runs/1", Fields::new()).unwrap_err().to_string().contains("runs/1"));
    }
}
