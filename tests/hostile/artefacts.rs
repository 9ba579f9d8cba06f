//! Programs that plant files for whoever collects them. What is judged is what can be fetched, and what was not touched.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::stage;
use crate::support::server::{Server, User};

/// A program that has run, and its files.
struct Planted {
    server: Server,
    user: User,
    id: String,
    run: Value,
    list: Value,
}

impl Planted {
    /// Runs `file`. It ends as its header says, and the host is empty again.
    async fn by(file: &str) -> Self {
        let server = stage::server(stage::agent(file, "", "")).await;
        let user = server.user("mallory");
        let id = user.say(file.split('.').next().unwrap(), "hello").await;
        let run = user.finished(&id).await;
        assert_eq!(stage::header(file).objection(&run), None, "{file}: {run:#}");
        let answer = user.get(&format!("/api/runs/{id}/files")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let list = answer.json().await.unwrap();
        stage::nothing_is_left(&server, &id).await;
        assert_eq!(user.get("/livez").send().await.unwrap().status(), 200, "the server lives");
        Self { server, user, id, run, list }
    }

    fn paths(&self) -> Vec<&str> {
        self.list["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect()
    }

    fn skipped(&self, reason: &str) -> u64 {
        self.list["skipped"][reason].as_u64().unwrap_or(0)
    }

    /// Fetches a file and checks that its answer is nothing but bytes to be saved.
    async fn fetch(&self, path: &str) -> Vec<u8> {
        let encoded: String = path.bytes().map(encoded).collect();
        let answer = self.user.get(&format!("/api/runs/{}/files/{encoded}", self.id)).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path:?}");
        let header = |name: &str| answer.headers().get(name).map_or("", |value| value.to_str().unwrap());
        assert_eq!(header("content-type"), "application/octet-stream", "{path:?}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path:?}");
        assert!(header("content-security-policy").starts_with("default-src 'none'"), "{path:?}");
        assert_eq!(header("content-encoding"), "", "{path:?}");
        let disposition = header("content-disposition");
        let name = disposition.strip_prefix("attachment; filename*=UTF-8''").unwrap_or_else(|| panic!("{disposition}"));
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"%-._".contains(&byte)), "{disposition}");
        answer.bytes().await.unwrap().to_vec()
    }
}

fn encoded(byte: u8) -> String {
    if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }
}

#[tokio::test]
async fn art_deep_dirs() {
    let planted = Planted::by("art_deep_dirs.py").await;
    assert!(planted.run["text"].as_str().unwrap().contains("depth 5000"), "{:#}", planted.run);
    assert_eq!((planted.paths(), planted.skipped("depth"), &planted.list["truncated"]), (vec![], 1, &Value::Bool(true)));
}

#[tokio::test]
async fn art_growing() {
    let planted = Planted::by("art_growing.py").await;
    assert_eq!(planted.paths(), ["grow"], "{:#}", planted.list);
    let listed = planted.list["files"][0]["bytes"].as_u64().unwrap();
    assert!(listed > 0 && listed <= 8 << 20, "{listed}");
    let content = planted.fetch("grow").await;
    assert!(content.len() as u64 == listed && content.iter().all(|byte| *byte == b'g'), "its size stood still");
}

#[tokio::test]
async fn art_many() {
    let begun = Instant::now();
    let planted = Planted::by("art_many.py").await;
    let ended = begun.elapsed() - Duration::from_millis(planted.run["usage"]["wallMillis"].as_u64().unwrap());
    assert_eq!(planted.paths().len(), 100);
    let made: u64 = planted.run["text"].as_str().unwrap().lines().last().unwrap().parse().unwrap();
    assert_eq!((planted.skipped("count"), &planted.list["truncated"]), (made - 100, &Value::Bool(true)));
    assert!(made > 8000 && ended < Duration::from_secs(20), "{made} files, all but the program took {ended:?}");
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    let file = rusqlite::Connection::open_with_flags(planted.server.data_dir().join("quayside.db"), flags).unwrap();
    let rows: u64 = file.query_row("SELECT count(*) FROM file_parts", [], |row| row.get(0)).unwrap();
    assert!(rows <= 100, "{rows} rows");
}

#[tokio::test]
async fn art_names() {
    let planted = Planted::by("art_names.py").await;
    let long = "x".repeat(255);
    let wanted = [
        " ",
        "\"><script>",
        "$(id)",
        "%2e%2e%2fetc",
        "--help",
        "-rf",
        "...",
        "..\\..\\x",
        "..evil",
        ".git",
        "C:\\x",
        "a;touch x",
        "con",
        "result.json ",
        &long,
    ];
    assert_eq!(planted.paths(), wanted, "{:#}", planted.list);
    // A line feed, no UTF-8, an escape, a character that turns the reading direction.
    assert_eq!(planted.skipped("name"), 4);
    for path in wanted {
        assert_eq!(planted.fetch(path).await, b"n", "{path:?}");
    }
}

#[tokio::test]
async fn art_symlinks() {
    let targets =
        ["/etc/passwd", "/etc/shadow", "/etc/hostname"].map(|path| (path, std::fs::metadata(path).ok().map(|seen| seen.modified().unwrap())));
    let planted = Planted::by("art_symlinks.sh").await;
    assert_eq!((planted.paths(), planted.skipped("symlink")), (vec![], 10), "{:#}", planted.list);
    for path in
        ["result.json", "stdout", "shadow.txt", "up.txt", "rootdir/etc/passwd", "parent", "loop1", "../../etc/passwd", "%2e%2e/%2e%2e/etc/passwd"]
    {
        let answer = planted.user.get(&format!("/api/runs/{}/files/{path}", planted.id)).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{path}");
    }
    assert!(!Path::new("/etc/cron.d/x").exists(), "somebody followed a link");
    for (path, before) in targets {
        assert_eq!(std::fs::metadata(path).ok().map(|seen| seen.modified().unwrap()), before, "{path} was written");
    }
}

#[tokio::test]
async fn art_zip_bomb() {
    let planted = Planted::by("art_zip_bomb.py").await;
    if planted.run["status"] == "completed" {
        assert_eq!(planted.paths(), ["bomb.gz", "bomb.zip"]);
        for (at, path) in ["bomb.gz", "bomb.zip"].into_iter().enumerate() {
            let content = planted.fetch(path).await;
            assert_eq!(content.len() as u64, planted.list["files"][at]["bytes"].as_u64().unwrap(), "{path} comes as it is");
            assert!(content.starts_with(if path.ends_with("gz") { b"\x1f\x8b" } else { b"PK" }));
        }
    }
    assert!(!Path::new("/tmp/hostile_escape_zip").exists(), "somebody unpacked it");
}
