//! The labels that say whose a container is.

use std::collections::HashMap;

use super::super::{ContainerKey, LaunchSpec};

/// The value names the installation that a container belongs to. No other container is ever touched.
pub(super) const INSTANCE: &str = "dev.quayside.instance";
const RUN: &str = "dev.quayside.run";
const EPOCH: &str = "dev.quayside.epoch";

type Labels = Option<HashMap<String, String>>;

/// The labels of a container made for `spec`. They name neither the user nor the message: the program may see them.
pub(super) fn of(instance: &str, spec: &LaunchSpec) -> HashMap<String, String> {
    HashMap::from([(INSTANCE.to_owned(), instance.to_owned()), (RUN.to_owned(), spec.run_id.to_string()), (EPOCH.to_owned(), spec.epoch.to_string())])
}

/// Whether they say that a container belongs to `instance`.
pub(super) fn are_of(labels: &Labels, instance: &str) -> bool {
    labels.as_ref().and_then(|labels| labels.get(INSTANCE)).is_some_and(|value| value == instance)
}

/// Which run and epoch they name; `None` when they cannot be read.
pub(super) fn key(labels: &Labels) -> Option<ContainerKey> {
    let labels = labels.as_ref()?;
    Some(ContainerKey { run_id: labels.get(RUN)?.parse().ok()?, epoch: labels.get(EPOCH)?.parse().ok()? })
}

/// Whether every label of `part` is among `whole`; an image may bring more.
pub(super) fn contain(whole: &Labels, part: &Labels) -> bool {
    part.iter().flatten().all(|(name, value)| whole.as_ref().and_then(|labels| labels.get(name)) == Some(value))
}
