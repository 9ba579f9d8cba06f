//! The labels that say whose a container is.

use std::collections::HashMap;

use super::super::{ContainerKey, LaunchSpec};

/// The value names the installation that a container belongs to. No other container is ever touched.
pub(super) const INSTANCE: &str = "dev.quayside.instance";
const RUN: &str = "dev.quayside.run";
const EPOCH: &str = "dev.quayside.epoch";
/// The number of a container that was made before there was a run for it.
const WARM: &str = "dev.quayside.warm";

type Labels = Option<HashMap<String, String>>;

/// The labels of a container made for `spec`. They name neither the user nor the message: the program may see them.
pub(super) fn of(instance: &str, spec: &LaunchSpec) -> HashMap<String, String> {
    let mut labels = HashMap::from([(INSTANCE.to_owned(), instance.to_owned())]);
    match &spec.key {
        ContainerKey::Run { run_id, epoch } => {
            labels.extend([(RUN.to_owned(), run_id.to_string()), (EPOCH.to_owned(), epoch.to_string())]);
        }
        ContainerKey::Warm(number) => {
            labels.insert(WARM.to_owned(), number.to_string());
        }
    }
    labels
}

/// Whether they say that a container belongs to `instance`.
pub(super) fn are_of(labels: &Labels, instance: &str) -> bool {
    labels.as_ref().and_then(|labels| labels.get(INSTANCE)).is_some_and(|value| value == instance)
}

/// Which container they name; `None` when they cannot be read.
pub(super) fn key(labels: &Labels) -> Option<ContainerKey> {
    let labels = labels.as_ref()?;
    if let Some(number) = labels.get(WARM) {
        return Some(ContainerKey::Warm(number.parse().ok()?));
    }
    Some(ContainerKey::Run { run_id: labels.get(RUN)?.parse().ok()?, epoch: labels.get(EPOCH)?.parse().ok()? })
}

/// Whether every label of `part` is among `whole`; an image may bring more.
pub(super) fn contain(whole: &Labels, part: &Labels) -> bool {
    part.iter().flatten().all(|(name, value)| whole.as_ref().and_then(|labels| labels.get(name)) == Some(value))
}
