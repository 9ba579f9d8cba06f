//! Every query that the store makes. Firestore needs an index for each one with more than one condition;
//! `infra/firestore/firestore.indexes.json` has them, and a test below compares the two.

use firestore::gcloud_sdk::google::firestore::v1::structured_query::field_filter::Operator;
use firestore::gcloud_sdk::google::firestore::v1::structured_query::filter::FilterType;
use firestore::gcloud_sdk::google::firestore::v1::structured_query::{
    CollectionSelector, CompositeFilter, Direction, FieldFilter, FieldReference, Filter, Order, Projection, composite_filter,
};
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::{ArrayValue, Cursor, StructuredQuery, Value};

use super::codec::{integer_value, text_value, time_value};
use super::records::alarms;
use crate::clock::Timestamp;
use crate::ids::UserId;

const NAME: &str = "__name__";

fn field(path: &str) -> Option<FieldReference> {
    Some(FieldReference { field_path: path.to_owned() })
}

fn is(path: &str, op: Operator, value: Value) -> Filter {
    Filter { filter_type: Some(FilterType::FieldFilter(FieldFilter { field: field(path), op: op.into(), value: Some(value) })) }
}

fn equal(path: &str, value: Value) -> Filter {
    is(path, Operator::Equal, value)
}

fn reference(name: String) -> Value {
    Value { value_type: Some(ValueType::ReferenceValue(name)) }
}

fn flag(value: bool) -> Value {
    Value { value_type: Some(ValueType::BooleanValue(value)) }
}

fn order(path: &str, direction: Direction) -> Order {
    Order { field: field(path), direction: direction.into() }
}

fn select(collection: &str, mut filters: Vec<Filter>, order_by: Vec<Order>, limit: usize) -> StructuredQuery {
    let filter = if filters.len() > 1 {
        let all = CompositeFilter { op: composite_filter::Operator::And.into(), filters };
        Some(Filter { filter_type: Some(FilterType::CompositeFilter(all)) })
    } else {
        filters.pop()
    };
    StructuredQuery {
        from: vec![CollectionSelector { collection_id: collection.to_owned(), all_descendants: false }],
        r#where: filter,
        order_by,
        limit: (limit > 0).then(|| i32::try_from(limit).unwrap_or(i32::MAX)),
        ..StructuredQuery::default()
    }
}

/// Documents of `collection` (`runs` or `lines`) whose alarm in `shard` is due by `until`, the earliest first.
pub(super) fn due(collection: &str, shard: i64, until: Timestamp, limit: usize) -> StructuredQuery {
    let (from, to) = alarms(shard, until);
    let filters = vec![is("sweepAt", Operator::GreaterThanOrEqual, integer_value(from)), is("sweepAt", Operator::LessThanOrEqual, integer_value(to))];
    select(collection, filters, vec![order("sweepAt", Direction::Ascending)], limit)
}

/// Runs that wait.
pub(super) fn queued() -> StructuredQuery {
    select("runs", vec![equal("status", text_value("queued"))], vec![], 0)
}

/// Runs that a worker holds.
pub(super) fn leased() -> StructuredQuery {
    let words = ["in_progress", "cancelling"].map(text_value).to_vec();
    let either = Value { value_type: Some(ValueType::ArrayValue(ArrayValue { values: words })) };
    select("runs", vec![is("status", Operator::In, either)], vec![], 0)
}

/// Queued runs of earlier minutes.
pub(super) fn queued_before(minute: i64) -> StructuredQuery {
    select("runs", vec![is("queuedMinute", Operator::LessThan, integer_value(minute))], vec![], 0)
}

/// Queued runs of one minute, with nothing but when they were accepted.
pub(super) fn queued_in(minute: i64, limit: usize) -> StructuredQuery {
    let query = select("runs", vec![equal("queuedMinute", integer_value(minute))], vec![], limit);
    StructuredQuery { select: Some(Projection { fields: field("createdAt").into_iter().collect() }), ..query }
}

/// The queued runs of the oldest minute.
pub(super) fn oldest_queued(limit: usize) -> StructuredQuery {
    select("runs", vec![is("queuedMinute", Operator::GreaterThan, integer_value(0))], vec![order("queuedMinute", Direction::Ascending)], limit)
}

/// The runs of a conversation, the rolled-back ones excluded, after `ordinal` in their order.
pub(super) fn runs_after(conversation_key: &str, ordinal: i64, limit: usize) -> StructuredQuery {
    let filters = vec![
        equal("conversationKey", text_value(conversation_key)),
        equal("rolledBack", flag(false)),
        is("ordinal", Operator::GreaterThan, integer_value(ordinal)),
    ];
    select("runs", filters, vec![order("ordinal", Direction::Ascending)], limit)
}

/// The same before `ordinal`, the newest first.
pub(super) fn runs_before(conversation_key: &str, ordinal: i64, limit: usize) -> StructuredQuery {
    let filters = vec![
        equal("conversationKey", text_value(conversation_key)),
        equal("rolledBack", flag(false)),
        is("ordinal", Operator::LessThan, integer_value(ordinal)),
    ];
    select("runs", filters, vec![order("ordinal", Direction::Descending)], limit)
}

/// All runs of a conversation.
pub(super) fn runs_of(conversation_key: &str, limit: usize) -> StructuredQuery {
    select("runs", vec![equal("conversationKey", text_value(conversation_key))], vec![], limit)
}

/// A user's conversations, the most recently used first, after `cursor`: its time and its document's full name.
pub(super) fn conversations(user: &UserId, cursor: Option<(Timestamp, String)>, limit: usize) -> StructuredQuery {
    let order_by = vec![order("updatedAt", Direction::Descending), order(NAME, Direction::Descending)];
    let mut query = select("conversations", vec![equal("userId", text_value(user.as_str()))], order_by, limit);
    query.start_at = cursor.map(|(time, name)| Cursor { values: vec![time_value(time), reference(name)], before: false });
    query
}

/// Dead letters that nobody has redriven, the newest first, after `cursor`: its time and its document's full name. An index
/// on a time, for once: few are written.
pub(super) fn dead_letters(cursor: Option<(Timestamp, String)>, limit: usize) -> StructuredQuery {
    let order_by = vec![order("createdAt", Direction::Descending), order(NAME, Direction::Descending)];
    let mut query = select("deadLetters", vec![equal("open", flag(true))], order_by, limit);
    query.start_at = cursor.map(|(time, name)| Cursor { values: vec![time_value(time), reference(name)], before: false });
    query
}

/// What every worker says of itself.
pub(super) fn workers() -> StructuredQuery {
    select("workers", vec![], vec![], 0)
}

/// Deleted conversations whose runs are still to be removed.
pub(super) fn trash(limit: usize) -> StructuredQuery {
    select("trash", vec![], vec![], limit)
}

/// Pieces of a reply with names between two full names, in order.
pub(super) fn pieces(collection: &str, after: String, before: String, limit: usize) -> StructuredQuery {
    let filters = vec![is(NAME, Operator::GreaterThan, reference(after)), is(NAME, Operator::LessThan, reference(before))];
    select(collection, filters, vec![order(NAME, Direction::Ascending)], limit)
}

/// The names of all pieces of a run.
pub(super) fn piece_names(collection: &str, limit: usize) -> StructuredQuery {
    let query = select(collection, vec![], vec![], limit);
    StructuredQuery { select: Some(Projection { fields: field(NAME).into_iter().collect() }), ..query }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value as Json;

    use super::*;

    /// Every function above, by its shape.
    fn all() -> Vec<StructuredQuery> {
        let (now, user) = (Timestamp::from_millis(1), "u".parse().unwrap());
        vec![
            due("runs", 0, now, 1),
            due("lines", 0, now, 1),
            queued(),
            leased(),
            queued_before(1),
            queued_in(1, 1),
            oldest_queued(1),
            runs_after("k", 0, 1),
            runs_before("k", 0, 1),
            runs_of("k", 1),
            conversations(&user, None, 1),
            trash(1),
            dead_letters(None, 1),
            workers(),
            pieces("deltas", "a".into(), "b".into(), 1),
            pieces("final", "a".into(), "b".into(), 1),
            piece_names("deltas", 1),
            piece_names("final", 1),
            piece_names("files", 1),
            piece_names("fileParts", 1),
        ]
    }

    fn conditions(filter: Option<&Filter>) -> Vec<(String, bool)> {
        match filter.and_then(|filter| filter.filter_type.as_ref()) {
            Some(FilterType::CompositeFilter(all)) => all.filters.iter().flat_map(|filter| conditions(Some(filter))).collect(),
            Some(FilterType::FieldFilter(one)) => {
                let equality = one.op == i32::from(Operator::Equal) || one.op == i32::from(Operator::In);
                vec![(one.field.as_ref().unwrap().field_path.clone(), equality)]
            }
            _ => Vec::new(),
        }
    }

    /// What Firestore's rule asks for: the equalities in any order, then the order of the result. `None`: one field alone,
    /// whose index is made by itself unless it is exempted.
    fn needed(query: &StructuredQuery) -> (BTreeSet<String>, Vec<(String, &'static str)>) {
        let equalities =
            conditions(query.r#where.as_ref()).into_iter().filter(|(path, equal)| *equal && path != NAME).map(|(path, _)| path).collect();
        let mut ordered: Vec<_> = query
            .order_by
            .iter()
            .map(|order| {
                let descending = order.direction == i32::from(Direction::Descending);
                (order.field.as_ref().unwrap().field_path.clone(), if descending { "DESCENDING" } else { "ASCENDING" })
            })
            .filter(|(path, _)| path != NAME)
            .collect();
        if ordered.is_empty() {
            let ranges = conditions(query.r#where.as_ref()).into_iter().filter(|(path, equal)| !equal && path != NAME);
            ordered = ranges.map(|(path, _)| (path, "ASCENDING")).collect();
            ordered.dedup();
        }
        (equalities, ordered)
    }

    fn file() -> Json {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/firestore/firestore.indexes.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    #[test]
    fn every_query_has_its_index_and_every_index_its_query() {
        let file = file();
        let mut unused: BTreeSet<String> = file["indexes"].as_array().unwrap().iter().map(ToString::to_string).collect();
        for query in all() {
            let collection = &query.from[0].collection_id;
            let (equalities, ordered) = needed(&query);
            if equalities.len() + ordered.len() < 2 {
                continue;
            }
            let found = file["indexes"].as_array().unwrap().iter().find(|index| {
                let fields = index["fields"].as_array().unwrap();
                let (first, rest) = fields.split_at(equalities.len().min(fields.len()));
                index["collectionGroup"] == *collection
                    && index["queryScope"] == "COLLECTION"
                    && first.iter().map(|field| field["fieldPath"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>() == equalities
                    && rest.len() == ordered.len()
                    && rest.iter().zip(&ordered).all(|(field, (path, direction))| field["fieldPath"] == *path && field["order"] == *direction)
            });
            let found = found.unwrap_or_else(|| panic!("{collection} needs an index on {equalities:?} then {ordered:?}"));
            unused.remove(&found.to_string());
        }
        assert!(unused.is_empty(), "indexes that no query needs: {unused:?}");
    }

    /// Firestore indexes every field unless told otherwise: what a query uses alone must stay indexed, and no time may be.
    #[test]
    fn single_fields_are_indexed_where_queries_need_them_and_nowhere_else() {
        let file = file();
        let mut exempt = BTreeMap::<String, BTreeSet<String>>::new();
        for field in file["fieldOverrides"].as_array().unwrap() {
            if field["indexes"].as_array().unwrap().is_empty() {
                let collection = field["collectionGroup"].as_str().unwrap().to_owned();
                exempt.entry(collection).or_default().insert(field["fieldPath"].as_str().unwrap().to_owned());
            }
        }
        let kept = |collection: &str, path: &str| !exempt.get(collection).is_some_and(|paths| paths.contains(path));
        for query in all() {
            let collection = &query.from[0].collection_id;
            let (equalities, ordered) = needed(&query);
            if equalities.len() + ordered.len() == 1 {
                let path = equalities.into_iter().chain(ordered.into_iter().map(|(path, _)| path)).next().unwrap();
                assert!(kept(collection, &path), "{collection}.{path} is queried alone and must stay indexed");
            }
        }
        for (collection, paths) in [
            (
                "runs",
                &[
                    "createdAt",
                    "startedAt",
                    "finishedAt",
                    "expireAt",
                    "notBefore",
                    "startBy",
                    "sequenceNumber",
                    "message",
                    "text",
                    "lease",
                    "attempts",
                    "statusLog",
                ][..],
            ),
            ("deltas", &["expireAt", "sequenceNumber", "text"]),
            ("final", &["expireAt", "sequenceNumber", "text"]),
            ("files", &["expireAt", "files"]),
            ("fileParts", &["expireAt", "data"]),
            ("conversations", &["createdAt", "updatedAt", "title"]),
            ("lines", &["entries"]),
            ("idempotency", &["expireAt"]),
            ("removed", &["expireAt"]),
            ("deadLetters", &["expireAt", "detail", "data"]),
            ("workers", &["expireAt", "seenAt", "startedAt"]),
        ] {
            for path in paths {
                assert!(!kept(collection, path), "{collection}.{path} rises or is long: exempt it");
            }
        }
        for collection in ["runs", "deltas", "final", "files", "fileParts", "idempotency", "removed", "deadLetters", "workers"] {
            let ttl = file["fieldOverrides"]
                .as_array()
                .unwrap()
                .iter()
                .any(|field| field["collectionGroup"] == collection && field["fieldPath"] == "expireAt" && field["ttl"] == true);
            assert!(ttl, "{collection} needs a TTL policy on expireAt");
        }
    }
}
