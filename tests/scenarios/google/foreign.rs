//! Documents that somebody else wrote.

use std::time::Duration;

use quayside_shared::ids::WorkerId;
use quayside_shared::run::Status;
use quayside_shared::store::{Claim, Store};
use serde_json::json;

use crate::support::eventually;

use super::fleet;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_document_that_cannot_be_read_stops_no_sweeper() {
    let google = fleet::google().await;
    let store = fleet::store(&google).await;
    // Due since 1970, in the first range of alarms, before everything else.
    let fields = json!({"fields": {"sweepAt": {"integerValue": "1"}, "status": {"stringValue": "queued"}}});
    for document in ["runs/run_0000000000000000000000", "lines/strange"] {
        let url = format!(
            "http://{}/v1/projects/{}/databases/(default)/documents/{document}",
            google.firestore_emulator.as_ref().unwrap(),
            google.project_id
        );
        let answer = reqwest::Client::new().patch(url).bearer_auth("owner").json(&fields).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
    }
    let id = store.submit(fleet::new_run()).await.unwrap().run.id;
    let claimed = store.claim(&id, &WorkerId::random(), Duration::from_millis(1)).await.unwrap();
    assert!(matches!(claimed, Claim::Claimed(..)), "{claimed:?}");
    eventually("the repair of the lost attempt", async || {
        store.sweep().await.unwrap();
        (store.run(&id).await.unwrap().unwrap().status == Status::Queued).then_some(())
    })
    .await;
}
