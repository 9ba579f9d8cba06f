//! Fetching, unpacking, and removing what nobody uses.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::reference::digest_in_layout;
use super::{Image, ImageConfig, Named, Reference};

/// An image that takes longer has to be here before its agent is used.
const LIMIT: Duration = Duration::from_secs(300);
/// An image that no worker of the machine has asked for in so long is removed when another is unpacked.
const UNUSED: Duration = Duration::from_secs(7 * 24 * 3600);
/// How exactly it is known when an image was last used.
const NOTED_EVERY: Duration = Duration::from_secs(3600);

/// The name that an image has inside a layout of ours.
const TAG: &str = "image";
/// What containers mount something on, and what an image may leave out.
const MOUNT_POINTS: [&str; 5] = ["proc", "sys", "dev", "tmp", "workspace"];
/// The file that the init is mounted on, and the one by which programs know that they are in a container.
const FILES: [&str; 2] = [".init", ".dockerenv"];

const ROOTFS: &str = "rootfs";
const CONFIG: &str = "image.json";
/// Its time is when the image was last used.
const USED: &str = "used";

/// The image `digest`, copied from `source` and unpacked if it is not there.
pub(super) async fn unpacked(folder: &Path, digest: &str, source: &[String]) -> io::Result<Image> {
    if let Some(image) = find(folder, digest)? {
        note_use(folder, digest);
        return Ok(image);
    }
    let _locked = lock(folder).await?;
    // Another worker may have been faster.
    if let Some(image) = find(folder, digest)? {
        return Ok(image);
    }
    tracing::info!(digest, "unpacking an image");
    let work = tempfile::Builder::new().prefix("unpacking-").tempdir_in(folder)?;
    let layout = work.path().join("layout");
    copy(source, &layout).await?;
    unpack(&layout, work.path()).await?;
    place(folder, digest, work.path())?;
    find(folder, digest)?.ok_or_else(|| io::Error::other("an image that was unpacked is not there"))
}

/// Fetches an image from its registry and unpacks it.
pub(super) async fn fetch(folder: &Path, reference: &Reference) -> io::Result<Named> {
    let _locked = lock(folder).await?;
    let work = tempfile::Builder::new().prefix("unpacking-").tempdir_in(folder)?;
    let layout = work.path().join("layout");
    copy(&[reference.source()], &layout).await?;
    let digest = digest_in_layout(&layout, Some(TAG))?;
    if find(folder, &digest)?.is_none() {
        unpack(&layout, work.path()).await?;
        place(folder, &digest, work.path())?;
    }
    let name = name_file(folder, reference);
    fs::create_dir_all(name.parent().unwrap_or(folder))?;
    fs::write(name, &digest)?;
    Ok(Named { pushed: Some(digest.clone()), digest, source: vec![reference.source()] })
}

/// What was fetched under this name before, and is still here.
pub(super) fn fetched(folder: &Path, reference: &Reference) -> io::Result<Option<String>> {
    match fs::read_to_string(name_file(folder, reference)) {
        Ok(digest) => Ok(find(folder, digest.trim())?.map(|image| image.digest)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Says that an image is in use. Nothing depends on it but how long it is kept.
pub(super) fn note_use(folder: &Path, digest: &str) {
    let note = folder.join(folder_name(digest)).join(USED);
    let lately = fs::metadata(&note).and_then(|note| note.modified()).is_ok_and(|time| time.elapsed().is_ok_and(|age| age < NOTED_EVERY));
    if !lately && note.parent().is_some_and(Path::exists) {
        let _kept_less_long = fs::write(note, "");
    }
}

/// Lower-case letters, digits and hyphens, whatever the digest is.
fn folder_name(digest: &str) -> String {
    digest.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
}

fn name_file(folder: &Path, reference: &Reference) -> PathBuf {
    // A file name has no slash, and two names of images no file in common.
    let name: String = reference
        .source()
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("-{byte:02x}") })
        .collect();
    folder.join("names").join(name)
}

fn find(folder: &Path, digest: &str) -> io::Result<Option<Image>> {
    let image = folder.join(folder_name(digest));
    match fs::read(image.join(CONFIG)) {
        Ok(config) => Ok(Some(Image { digest: digest.to_owned(), rootfs: image.join(ROOTFS), config: serde_json::from_slice(&config)? })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// One at a time on a machine: two would do the same work twice.
async fn lock(folder: &Path) -> io::Result<File> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let file = File::options().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await.map_err(io::Error::other)?
}

async fn copy(source: &[String], layout: &Path) -> io::Result<()> {
    let target = format!("oci:{}:{TAG}", layout.display());
    let arguments: Vec<&str> = ["copy", "--quiet"].into_iter().chain(source.iter().map(String::as_str)).chain([target.as_str()]).collect();
    run("skopeo", &arguments).await
}

/// Unpacks the image of a layout and makes it fit to be shared.
async fn unpack(layout: &Path, work: &Path) -> io::Result<()> {
    let bundle = work.join("bundle");
    run("umoci", &["unpack", "--image", &format!("{}:{TAG}", layout.display()), &bundle.display().to_string()]).await?;
    let config = image_config(layout)?;
    let rootfs = bundle.join(ROOTFS);
    let made = work.join("made");
    fs::create_dir(&made)?;
    fs::write(made.join(CONFIG), serde_json::to_vec(&config)?)?;
    fs::write(made.join(USED), "")?;
    fs::rename(rootfs, made.join(ROOTFS))?;
    let rootfs = made.join(ROOTFS);
    tokio::task::spawn_blocking(move || {
        remove_devices(&rootfs)?;
        for point in MOUNT_POINTS {
            make_folder(&rootfs.join(point))?;
        }
        FILES.into_iter().try_for_each(|file| make_file(&rootfs.join(file)))
    })
    .await
    .map_err(io::Error::other)?
}

/// Puts an unpacked image where everybody finds it, and removes those that nobody uses.
fn place(folder: &Path, digest: &str, work: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        let used = fs::metadata(path.join(USED)).and_then(|note| note.modified());
        // Ours alone have such a note; a broken attempt of somebody who died has its folder's own time.
        let used = if entry.file_name().to_string_lossy().starts_with("unpacking-") { entry.metadata().and_then(|own| own.modified()) } else { used };
        if path != work
            && used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > UNUSED))
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(%error, path = %path.display(), "an old image could not be removed");
        }
    }
    fs::rename(work.join("made"), folder.join(folder_name(digest)))
}

/// The part of the image's configuration that counts, by way of index and manifest.
fn image_config(layout: &Path) -> io::Result<ImageConfig> {
    let manifest: Value = serde_json::from_slice(&fs::read(blob(layout, &digest_in_layout(layout, Some(TAG))?)?)?)?;
    let digest = manifest["config"]["digest"].as_str().ok_or_else(|| io::Error::other("a manifest without a configuration"))?;
    let mut config: Value = serde_json::from_slice(&fs::read(blob(layout, digest)?)?)?;
    let config = config.get_mut("config").map(Value::take).filter(|config| !config.is_null());
    Ok(config.map(serde_json::from_value).transpose()?.unwrap_or_default())
}

fn blob(layout: &Path, digest: &str) -> io::Result<PathBuf> {
    match digest.split_once(':') {
        Some((algorithm, hex)) if [algorithm, hex].iter().all(|part| part.bytes().all(|byte| byte.is_ascii_alphanumeric())) => {
            Ok(layout.join("blobs").join(algorithm).join(hex))
        }
        _ => Err(io::Error::other("a digest that is none")),
    }
}

/// Device nodes of an image would be ways to the host's devices where the kernel keeps no list of allowed ones.
fn remove_devices(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            remove_devices(&entry.path())?;
        } else if kind.is_block_device() || kind.is_char_device() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes a folder to mount on. A link of that name would lead somewhere else.
fn make_folder(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => fs::remove_file(path).and_then(|()| fs::create_dir(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir(path),
        Err(error) => Err(error),
    }
}

/// Makes an empty file, in the place of whatever was there.
fn make_file(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_nothing_there) => {}
    }
    fs::write(path, "")
}

/// Runs a tool to its end; what it says goes into the error.
async fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let running = tokio::process::Command::new(program).args(arguments).stdin(std::process::Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, running).await.map_err(|_| io::Error::other(format!("`{program}` took too long")))?;
    let output = output.map_err(|error| io::Error::new(error.kind(), format!("`{program}` cannot be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("`{program}` failed: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_become_names_of_files() {
        let of = |name: &str| name_file(Path::new("/i"), &Reference::read(name));
        assert_ne!(of("localhost/a-b"), of("localhost/a/b"));
        for name in ["localhost/../../etc/passwd", "localhost/a@sha256:0"] {
            assert_eq!(of(name).parent(), Some(Path::new("/i/names")), "{name}");
        }
        assert_eq!(folder_name("sha256:aB../c"), "sha256-ab---c");
    }

    #[test]
    fn a_link_is_nothing_to_mount_on() {
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", folder.path().join(".init")).unwrap();
        make_file(&folder.path().join(".init")).unwrap();
        assert!(fs::symlink_metadata(folder.path().join(".init")).unwrap().is_file());
        std::os::unix::fs::symlink("/etc", folder.path().join("tmp")).unwrap();
        for point in ["tmp", "proc"] {
            make_folder(&folder.path().join(point)).unwrap();
            assert!(fs::symlink_metadata(folder.path().join(point)).unwrap().is_dir(), "{point}");
        }
    }

    #[test]
    fn what_nobody_used_goes_when_another_comes() {
        let folder = tempfile::tempdir().unwrap();
        let age = |path: &Path, time: Duration| {
            let stamp = fs::metadata(path).unwrap().modified().unwrap() - time;
            File::open(path).unwrap().set_modified(stamp).unwrap();
        };
        for (name, days) in [("sha256-old", 8), ("sha256-new", 6)] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join(USED), "").unwrap();
            age(&folder.path().join(name).join(USED), Duration::from_secs(days * 24 * 3600));
        }
        fs::create_dir_all(folder.path().join("unpacking-dead")).unwrap();
        age(&folder.path().join("unpacking-dead"), Duration::from_secs(8 * 24 * 3600));
        let work = folder.path().join("unpacking-mine");
        fs::create_dir_all(work.join("made")).unwrap();
        place(folder.path(), "sha256:mine", &work).unwrap();
        let exists = |name: &str| folder.path().join(name).exists();
        assert!(exists("sha256-mine") && exists("sha256-new"));
        assert!(!exists("sha256-old") && !exists("unpacking-dead"));
        age(&folder.path().join("sha256-new").join(USED), Duration::from_secs(24 * 3600));
        note_use(folder.path(), "sha256:new");
        assert!(fs::metadata(folder.path().join("sha256-new").join(USED)).unwrap().modified().unwrap().elapsed().unwrap() < NOTED_EVERY);
    }
}
