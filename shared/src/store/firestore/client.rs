//! The few calls that the store makes: read documents, commit writes all or none, query, count. Every call ends within
//! its time.

use std::pin::Pin;
use std::time::Duration;

use firestore::errors::FirestoreError;
use firestore::gcloud_sdk::google::firestore::v1::batch_get_documents_response::Result as Got;
use firestore::gcloud_sdk::google::firestore::v1::precondition::ConditionType;
use firestore::gcloud_sdk::google::firestore::v1::run_aggregation_query_request::QueryType as AggregationType;
use firestore::gcloud_sdk::google::firestore::v1::run_query_request::QueryType;
use firestore::gcloud_sdk::google::firestore::v1::structured_aggregation_query::aggregation::{Count, Operator};
use firestore::gcloud_sdk::google::firestore::v1::structured_aggregation_query::{Aggregation, QueryType as AggregatedQuery};
use firestore::gcloud_sdk::google::firestore::v1::value::ValueType;
use firestore::gcloud_sdk::google::firestore::v1::write::Operation;
use firestore::gcloud_sdk::google::firestore::v1::{
    BatchGetDocumentsRequest, CommitRequest, Document, DocumentMask, Precondition, RunAggregationQueryRequest, RunQueryRequest,
    StructuredAggregationQuery, StructuredQuery, Write,
};
use firestore::gcloud_sdk::prost_types;
use firestore::gcloud_sdk::tonic::{Code, Status};
use firestore::{FirestoreDb, FirestoreDbOptions};
use google_cloud_auth::credentials::{CacheableResource, Credentials, CredentialsProvider, EntityTag};
use google_cloud_auth::errors::CredentialsError;

use super::codec::Fields;
use crate::config::Google;
use crate::error::{Error, ErrorKind, Result};

/// No call takes longer. Firestore's own deadline is 60 s; nobody here waits so long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long the first connection is waited for.
const CONNECT: Duration = Duration::from_secs(15);

/// A document as it was read.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Its path below the database: `runs/run_…`.
    pub(super) path: String,
    pub(super) fields: Fields,
    /// Its version: a later write names it, and fails when another came first.
    pub(super) version: Version,
}

/// What a write expects of its document.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Version {
    /// It is not there.
    Absent,
    /// Nobody has written it since.
    At(prost_types::Timestamp),
    /// Whatever.
    Any,
}

impl Version {
    fn precondition(self) -> Option<Precondition> {
        let condition = match self {
            Self::Absent => ConditionType::Exists(false),
            Self::At(time) => ConditionType::UpdateTime(time),
            Self::Any => return None,
        };
        Some(Precondition { condition_type: Some(condition) })
    }
}

/// What became of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Committed {
    /// All of it is stored.
    Done,
    /// A document is not as expected: nothing is stored. Read again and decide anew.
    Conflict,
}

/// The connection to one database.
#[derive(Clone)]
pub(super) struct Client {
    db: FirestoreDb,
    database: String,
    documents: String,
}

impl Client {
    /// Connects, waiting a while for a service that does not answer yet: processes that start together need no order.
    pub(super) async fn connect(google: &Google) -> Result<Self> {
        let pauses = backoff::ExponentialBackoffBuilder::new()
            .with_initial_interval(Duration::from_millis(100))
            .with_max_interval(Duration::from_secs(2))
            .with_max_elapsed_time(Some(CONNECT))
            .build();
        let connect = || async {
            Self::connect_once(google)
                .await
                .map_err(|error| if is_transport(&error) { backoff::Error::transient(error) } else { backoff::Error::permanent(error) })
        };
        let connected = backoff::future::retry_notify(pauses, connect, |error: FirestoreError, pause: Duration| {
            let retry_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(error = %error, retry_ms, "Firestore does not answer yet");
        });
        connected.await.map_err(|error| unreachable(google, error))
    }

    async fn connect_once(google: &Google) -> std::result::Result<Self, FirestoreError> {
        let options = FirestoreDbOptions::new(google.project_id.clone()).with_database_id(google.database.clone());
        let connected = match &google.firestore_emulator {
            Some(host) => {
                FirestoreDb::with_options_auth(options.with_firebase_api_url(format!("http://{host}")), Credentials::from(Owner::default())).await
            }
            None => FirestoreDb::with_options(options).await,
        };
        connected.map(Self::over)
    }

    fn over(db: FirestoreDb) -> Self {
        let (database, documents) = (db.get_database_path().clone(), db.get_documents_path().clone());
        Self { db, database, documents }
    }

    /// The client crate's own handle, for listening.
    pub(super) const fn db(&self) -> &FirestoreDb {
        &self.db
    }

    /// The full name of the document at `path`.
    pub(super) fn name(&self, path: &str) -> String {
        format!("{}/{path}", self.documents)
    }

    fn path<'a>(&self, name: &'a str) -> &'a str {
        name.strip_prefix(&self.documents).map_or(name, |path| path.trim_start_matches('/'))
    }

    /// The documents at `paths`, in that order; what is not there is `None`. One consistent moment for all of them.
    pub(super) async fn get_all(&self, paths: &[&str]) -> Result<Vec<Option<Found>>> {
        let request = BatchGetDocumentsRequest {
            database: self.database.clone(),
            documents: paths.iter().map(|path| self.name(path)).collect(),
            ..BatchGetDocumentsRequest::default()
        };
        let read = async {
            let mut answers = self.db.client().get().batch_get_documents(request).await?.into_inner();
            let mut found = vec![None; paths.len()];
            while let Some(answer) = answers.message().await? {
                if let Some(Got::Found(document)) = answer.result {
                    let document = self.found(document);
                    if let Some(place) = paths.iter().position(|path| *path == document.path) {
                        found[place] = Some(document);
                    }
                }
            }
            Ok(found)
        };
        within("reading documents", Box::pin(read)).await
    }

    /// The document at `path`.
    pub(super) async fn get(&self, path: &str) -> Result<Option<Found>> {
        Ok(self.get_all(&[path]).await?.pop().flatten())
    }

    /// Stores `writes`, all of them or none.
    pub(super) async fn commit(&self, writes: Vec<Write>) -> Result<Committed> {
        let request = CommitRequest { database: self.database.clone(), writes, ..CommitRequest::default() };
        let written = async { self.db.client().get().commit(request).await };
        match tokio::time::timeout(TIMEOUT, Box::pin(written)).await {
            Ok(Ok(_)) => Ok(Committed::Done),
            Ok(Err(status)) => match status.code() {
                Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted | Code::NotFound => Ok(Committed::Conflict),
                _ => Err(failed("writing documents", status)),
            },
            Err(_) => Err(too_late("writing documents")),
        }
    }

    /// A write of all `fields`, expecting `version`.
    pub(super) fn write(&self, path: &str, fields: Fields, version: Version) -> Write {
        let document = Document { name: self.name(path), fields, ..Document::default() };
        Write { operation: Some(Operation::Update(document)), current_document: version.precondition(), ..Write::default() }
    }

    /// A write of these `fields` alone: the document's others stay.
    pub(super) fn patch(&self, path: &str, fields: Fields, version: Version) -> Write {
        let mask = DocumentMask { field_paths: fields.keys().cloned().collect() };
        Write { update_mask: Some(mask), ..self.write(path, fields, version) }
    }

    pub(super) fn delete(&self, path: &str, version: Version) -> Write {
        Write { operation: Some(Operation::Delete(self.name(path))), current_document: version.precondition(), ..Write::default() }
    }

    /// The documents that `query` finds below `parent` (empty: the database itself).
    pub(super) async fn query(&self, parent: &str, query: StructuredQuery) -> Result<Vec<Found>> {
        let request =
            RunQueryRequest { parent: self.parent(parent), query_type: Some(QueryType::StructuredQuery(query)), ..RunQueryRequest::default() };
        let read = async {
            let mut answers = self.db.client().get().run_query(request).await?.into_inner();
            let mut found = Vec::new();
            while let Some(answer) = answers.message().await? {
                found.extend(answer.document.map(|document| self.found(document)));
            }
            Ok(found)
        };
        within("querying documents", Box::pin(read)).await
    }

    /// How many documents `query` finds, counted up to `limit`.
    pub(super) async fn count(&self, query: StructuredQuery, limit: u64) -> Result<u64> {
        let up_to = Some(i64::try_from(limit).unwrap_or(i64::MAX));
        let count = Aggregation { alias: "n".to_owned(), operator: Some(Operator::Count(Count { up_to })) };
        let aggregated = StructuredAggregationQuery { aggregations: vec![count], query_type: Some(AggregatedQuery::StructuredQuery(query)) };
        let request = RunAggregationQueryRequest {
            parent: self.parent(""),
            query_type: Some(AggregationType::StructuredAggregationQuery(aggregated)),
            ..RunAggregationQueryRequest::default()
        };
        let read = async {
            let mut answers = self.db.client().get().run_aggregation_query(request).await?.into_inner();
            let mut counted = 0;
            while let Some(answer) = answers.message().await? {
                let value = answer.result.and_then(|mut result| result.aggregate_fields.remove("n")).and_then(|value| value.value_type);
                if let Some(ValueType::IntegerValue(n)) = value {
                    counted = u64::try_from(n).unwrap_or(0);
                }
            }
            Ok(counted)
        };
        within("counting documents", Box::pin(read)).await
    }

    fn parent(&self, parent: &str) -> String {
        if parent.is_empty() { self.documents.clone() } else { self.name(parent) }
    }

    fn found(&self, document: Document) -> Found {
        let version = document.update_time.map_or(Version::Any, Version::At);
        Found { path: self.path(&document.name).to_owned(), fields: document.fields, version }
    }
}

/// `call` comes boxed: the client's futures are large, and every caller's would be larger.
async fn within<T>(doing: &str, call: Pin<Box<dyn Future<Output = std::result::Result<T, Status>> + Send + '_>>) -> Result<T> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(status)) => Err(failed(doing, status)),
        Err(_elapsed) => Err(too_late(doing)),
    }
}

fn too_late(doing: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{doing} in Firestore: no answer within {} seconds", TIMEOUT.as_secs()))
}

fn failed(doing: &str, status: Status) -> Error {
    let (kind, hint) = match status.code() {
        Code::ResourceExhausted => (ErrorKind::Full, ": a quota is used up"),
        Code::PermissionDenied | Code::Unauthenticated => (ErrorKind::Unavailable, ": grant this service account roles/datastore.user"),
        Code::NotFound => (ErrorKind::Unavailable, ": create the database that google.database names"),
        Code::FailedPrecondition => (ErrorKind::Internal, ": deploy infra/firestore/firestore.indexes.json"),
        Code::InvalidArgument | Code::OutOfRange | Code::Unimplemented => (ErrorKind::Internal, ""),
        _ => (ErrorKind::Unavailable, ""),
    };
    Error::new(kind, format!("{doing} in Firestore{hint}")).with_source(status)
}

fn is_transport(error: &FirestoreError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<firestore::gcloud_sdk::tonic::transport::Error>() {
            return true;
        }
        cause = error.source();
    }
    // The client crate tells some causes in words alone.
    error.to_string().contains("transport::Error")
}

fn unreachable(google: &Google, error: FirestoreError) -> Error {
    let context = match &google.firestore_emulator {
        Some(host) if is_transport(&error) => format!("connecting to the Firestore emulator at {host}: start it, or set FIRESTORE_EMULATOR_HOST"),
        _ => format!(
            "connecting to Firestore of the project {}: check google.project_id, the network and the application default credentials",
            google.project_id
        ),
    };
    Error::new(ErrorKind::Unavailable, context).with_source(error)
}

/// What Google's tools send to their emulators: the word that lifts the security rules.
#[derive(Debug, Default)]
struct Owner {
    tag: EntityTag,
}

impl CredentialsProvider for Owner {
    async fn headers(&self, extensions: http::Extensions) -> std::result::Result<CacheableResource<http::HeaderMap>, CredentialsError> {
        if extensions.get::<EntityTag>() == Some(&self.tag) {
            return Ok(CacheableResource::NotModified);
        }
        let headers = http::HeaderMap::from_iter([(http::header::AUTHORIZATION, http::HeaderValue::from_static("Bearer owner"))]);
        Ok(CacheableResource::New { entity_tag: self.tag.clone(), data: headers })
    }

    async fn universe_domain(&self) -> Option<String> {
        None
    }
}
