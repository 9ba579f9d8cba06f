//! Files that come with a message: read strictly, checked whole.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quayside_shared::store::files::{DEPTH_MAX, FilePath, INPUT_BYTES_MAX, INPUTS_MAX, NAME_MAX, RunFile};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ArrayBuilder, Schema, SchemaType, Type};

use crate::error::{ApiError, Result};

/// What the files may add to a body: their content in base64, and room for names and for escaped slashes.
pub(crate) const BODY: usize = (1 << 20) + (1 << 19);

/// A file that shall be in `/workspace`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InputFile)]
pub(crate) struct InputFile {
    /// Where it shall be below `/workspace`: at most 8 names of at most 255 bytes each, none of them `.` or `..`.
    #[schema(min_length = 1, pattern = "^[^/\\u0000-\\u001f\\u007f-\\u009f]+(/[^/\\u0000-\\u001f\\u007f-\\u009f]+){0,7}$", example = "data/in.csv")]
    path: String,
    /// What shall be in it, in base64. All files together have at most 1 MiB.
    #[schema(max_length = 1_398_104, pattern = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$", example = "YSxiCjEsMgo=")]
    content: String,
}

/// The schema of a list of them.
pub(crate) fn schema() -> Schema {
    ArrayBuilder::new()
        .schema_type(SchemaType::Array(vec![Type::Array, Type::Null]))
        .description(Some("What shall be in the agent's workspace before it starts"))
        .items(utoipa::openapi::Ref::from_schema_name("InputFile"))
        .max_items(Some(INPUTS_MAX))
        .into()
}

/// The files, in the order of their paths.
pub(crate) fn check(inputs: Vec<InputFile>) -> Result<Vec<RunFile>> {
    if inputs.len() > INPUTS_MAX {
        return Err(ApiError::invalid("files", format!("must be at most {INPUTS_MAX}")));
    }
    let mut files: Vec<(usize, RunFile)> = Vec::with_capacity(inputs.len());
    let mut bytes = 0;
    for (at, InputFile { path, content }) in inputs.into_iter().enumerate() {
        let path: FilePath = path.parse().map_err(|_| ApiError::invalid(format!("files[{at}].path"), PATH_RULE.clone()))?;
        let content = STANDARD.decode(content).map_err(|_| ApiError::invalid(format!("files[{at}].content"), "must be base64, with its padding"))?;
        bytes += content.len() as u64;
        if bytes > INPUT_BYTES_MAX {
            return Err(ApiError::invalid("files", format!("must be at most {INPUT_BYTES_MAX} bytes in all")));
        }
        files.push((at, RunFile::new(path, content)));
    }
    files.sort_by(|(_, a), (_, b)| a.path.cmp(&b.path));
    for (at, (number, file)) in files.iter().enumerate() {
        let mut others = files.iter().take(at).map(|(_, other)| &other.path);
        if others.any(|other| *other == file.path || file.path.is_below(other)) {
            return Err(ApiError::invalid(format!("files[{number}].path"), "must not be the path of another file, or lead through one"));
        }
    }
    Ok(files.into_iter().map(|(_, file)| file).collect())
}

static PATH_RULE: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| {
    format!("must be a relative path of at most {DEPTH_MAX} names, each 1 to {NAME_MAX} bytes of printable characters and neither `.` nor `..`")
});

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    Path,
    Content,
}

/// Written by hand because a derived one also takes an array for the object.
impl<'de> Deserialize<'de> for InputFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = InputFile;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with `path` and `content`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<InputFile, A::Error> {
                let (mut path, mut content) = (None, None);
                while let Some(field) = map.next_key()? {
                    let (slot, name) = match field {
                        Field::Path => (&mut path, "path"),
                        Field::Content => (&mut content, "content"),
                    };
                    if slot.replace(map.next_value::<String>()?).is_some() {
                        return Err(A::Error::duplicate_field(name));
                    }
                }
                Ok(InputFile {
                    path: path.ok_or_else(|| A::Error::missing_field("path"))?,
                    content: content.ok_or_else(|| A::Error::missing_field("content"))?,
                })
            }
        }

        deserializer.deserialize_map(Reader)
    }
}
