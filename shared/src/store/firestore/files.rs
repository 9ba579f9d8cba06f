//! Files: those that came with the message, and those that attempts left behind.
//!
//! A list is a document, and each part of a file is one; the list is written last, and without it nobody sees the parts.

use firestore::gcloud_sdk::google::firestore::v1::Write;
use serde::{Deserialize, Serialize};

use super::FirestoreStore;
use super::change::PIECE_MARGIN;
use super::client::Version;
use super::codec::{self, Fields};
use super::records::{RunRecord, Stored, file_list_path, file_part_path};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::ids::{RunId, UserId};
use crate::state;
use crate::store::files::{Collected, FileEntry, FileList, FilePath, INPUT_EPOCH, PART, RunFile, shown_epoch};
use crate::store::{Fenced, Lease, LeaseLost};

/// Parts in one commit, which may have 10 MiB, and in one read.
const PARTS: usize = 8;

/// The files of one attempt, or of the message.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListRecord {
    #[serde(flatten)]
    list: FileList,
    epoch: u64,
    user_id: UserId,
    expire_at: Timestamp,
}

impl FirestoreStore {
    pub(super) async fn store_files(&self, lease: &Lease, files: &Collected) -> Result<Fenced<()>> {
        let Some(record) = self.held(lease).await? else { return Ok(Err(LeaseLost)) };
        let (parts, list) = self.file_writes(&record, lease.epoch, &files.files, files.list())?;
        let mut parts = parts.into_iter();
        loop {
            let group: Vec<Write> = parts.by_ref().take(PARTS).collect();
            if group.is_empty() {
                break;
            }
            self.client.commit(group).await?;
        }
        // Parts took time. What is written after the lease was lost is under its own epoch, and never shown.
        if self.held(lease).await?.is_none() {
            return Ok(Err(LeaseLost));
        }
        self.client.commit(vec![list]).await?;
        Ok(Ok(()))
    }

    async fn held(&self, lease: &Lease) -> Result<Option<RunRecord>> {
        let found = self.load(&lease.run_id).await?;
        Ok(found.map(|stored| stored.record).filter(|record| state::holds(&record.run, lease.epoch)))
    }

    /// The writes of files that came with a message, for the commit of its run.
    pub(super) fn input_writes(&self, record: &RunRecord, files: &[RunFile]) -> Result<Vec<Write>> {
        if files.is_empty() {
            return Ok(Vec::new());
        }
        let (mut writes, list) = self.file_writes(record, INPUT_EPOCH, files, FileList::of(files))?;
        writes.push(list);
        Ok(writes)
    }

    /// The parts, and the list that makes them count.
    fn file_writes(&self, record: &RunRecord, epoch: u64, files: &[RunFile], list: FileList) -> Result<(Vec<Write>, Write)> {
        let run = &record.run;
        let expire_at = self.now() + self.options.retention + PIECE_MARGIN;
        let mut writes = Vec::new();
        for file in files {
            for (number, data) in file.parts().enumerate() {
                let fields = Fields::from([
                    ("data".to_owned(), codec::bytes_value(data.to_vec())),
                    ("userId".to_owned(), codec::text_value(run.user_id.as_str())),
                    ("expireAt".to_owned(), codec::time_value(expire_at)),
                ]);
                writes.push(self.client.write(&file_part_path(&run.id, epoch, &file.path, number), fields, Version::Any));
            }
        }
        let list = ListRecord { list, epoch, user_id: run.user_id.clone(), expire_at };
        Ok((writes, self.client.write(&file_list_path(&run.id, epoch), codec::encode(&list)?, Version::Any)))
    }

    /// `None`: there is no such run.
    pub(super) async fn read_files(&self, id: &RunId) -> Result<Option<FileList>> {
        match self.visible_epoch(id).await? {
            None => Ok(None),
            Some(None) => Ok(Some(FileList::default())),
            Some(Some(epoch)) => self.file_list(id, epoch).await.map(Some),
        }
    }

    pub(super) async fn read_file(&self, id: &RunId, path: &FilePath) -> Result<Option<RunFile>> {
        let Some(Some(epoch)) = self.visible_epoch(id).await? else { return Ok(None) };
        match self.file_list(id, epoch).await?.entry(path) {
            Some(entry) => self.content(id, epoch, entry).await.map(Some),
            None => Ok(None),
        }
    }

    pub(super) async fn read_inputs(&self, id: &RunId) -> Result<Vec<RunFile>> {
        let list = self.file_list(id, INPUT_EPOCH).await?;
        let mut files = Vec::with_capacity(list.files.len());
        for entry in &list.files {
            files.push(self.content(id, INPUT_EPOCH, entry).await?);
        }
        Ok(files)
    }

    /// Outer `None`: there is no such run. Inner: it shows no files.
    async fn visible_epoch(&self, id: &RunId) -> Result<Option<Option<u64>>> {
        let Some(Stored { record, .. }) = self.load(id).await? else { return Ok(None) };
        Ok(self.is_visible(&record).await?.then(|| shown_epoch(&record.run)))
    }

    async fn file_list(&self, id: &RunId, epoch: u64) -> Result<FileList> {
        let Some(found) = self.client.get(&file_list_path(id, epoch)).await? else { return Ok(FileList::default()) };
        Ok(codec::decode::<ListRecord>(&found.path, found.fields)?.list)
    }

    async fn content(&self, id: &RunId, epoch: u64, entry: &FileEntry) -> Result<RunFile> {
        let missing = || Error::new(ErrorKind::Corrupt, format!("a part of a file of {id} is missing"));
        let bytes = usize::try_from(entry.bytes).map_err(|error| missing().with_source(error))?;
        let mut content = Vec::with_capacity(bytes);
        let paths: Vec<String> = (0..bytes.div_ceil(PART)).map(|number| file_part_path(id, epoch, &entry.path, number)).collect();
        for group in paths.chunks(PARTS) {
            let group: Vec<&str> = group.iter().map(String::as_str).collect();
            for found in self.client.get_all(&group).await? {
                content.extend_from_slice(found.as_ref().and_then(|found| codec::bytes_in(&found.fields, "data")).ok_or_else(missing)?);
            }
        }
        Ok(RunFile { path: entry.path.clone(), content, sha256: entry.sha256.clone() })
    }
}
