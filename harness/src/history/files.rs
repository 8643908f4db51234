//! A folder of files, `2026-01-31.jsonl`. Writers take turns by a lock on the file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use fs4::FileExt;

use super::store::{EXTENSION, Store, StoreError, day_of};

#[derive(Debug)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    pub fn new(dir: PathBuf) -> Files {
        Files { dir }
    }

    fn path(&self, day: &str) -> PathBuf {
        self.dir.join(format!("{day}{EXTENSION}"))
    }

    fn failed(&self, action: &'static str) -> impl Fn(io::Error) -> StoreError + '_ {
        move |error| StoreError::Io { action, place: self.place(), message: error.to_string() }
    }
}

impl Store for Files {
    fn place(&self) -> String {
        self.dir.display().to_string()
    }

    fn append(&self, day: &str, line: &str) -> Result<(), StoreError> {
        let failed = self.failed("write to");
        fs::create_dir_all(&self.dir).map_err(&failed)?;
        let path = self.path(day);
        let mut file =
            OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(&failed)?;
        FileExt::lock(&file).map_err(&failed)?;
        append_locked(&mut file, line).map_err(failed)
        // The lock ends with the file.
    }

    fn days(&self) -> Result<Vec<String>, StoreError> {
        let failed = self.failed("read");
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(&failed)?,
        };
        let mut days = Vec::new();
        for entry in entries {
            let entry = entry.map_err(&failed)?;
            // A folder of such a name is somebody else's.
            if entry.path().is_dir() {
                continue;
            }
            days.extend(entry.file_name().to_str().and_then(day_of).map(String::from));
        }
        days.sort();
        Ok(days)
    }

    fn read(&self, day: &str) -> Result<Vec<u8>, StoreError> {
        let failed = self.failed("read");
        let mut file = File::open(self.path(day)).map_err(&failed)?;
        // So that no line is seen that is being written. Where locks can't be had, it may be.
        let _ = FileExt::lock_shared(&file);
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn check(&self) -> Result<(), StoreError> {
        let failed = self.failed("write to");
        fs::create_dir_all(&self.dir).map_err(&failed)?;
        // Its own name in the error would tell nobody anything.
        let probe = tempfile::Builder::new().prefix(".probe-").tempfile_in(&self.dir);
        probe.map_err(|error| failed(error.kind().into()))?;
        Ok(())
    }
}

/// One line at the end of a file that nobody else writes to now.
fn append_locked(file: &mut File, line: &str) -> io::Result<()> {
    let end = file.seek(SeekFrom::End(0))?;
    // What a killed writer left becomes a line of its own, which readers report and skip.
    let torn = end > 0 && {
        file.seek(SeekFrom::Start(end - 1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        last != *b"\n"
    };
    let text = format!("{}{line}\n", if torn { "\n" } else { "" });
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
    if written.is_err() {
        // A full disk: half a line is no use to anybody, and the lines before it are whole.
        let _ = file.set_len(end);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path().join("a/history"));
        (dir, files)
    }

    #[test]
    fn lines_are_appended_to_the_file_of_their_day() {
        let (_dir, files) = store();
        assert_eq!(files.days().unwrap(), Vec::<String>::new());
        for (day, line) in [("2026-01-31", "a"), ("2026-02-01", "b"), ("2026-01-31", "c")] {
            files.append(day, line).unwrap();
        }
        fs::write(files.dir.join("notes.txt"), "not ours").unwrap();
        fs::create_dir(files.dir.join("2026-01-30.jsonl")).unwrap();
        assert_eq!(files.days().unwrap(), ["2026-01-31", "2026-02-01"]);
        assert_eq!(files.read("2026-01-31").unwrap(), b"a\nc\n");
    }

    #[test]
    fn a_torn_line_stays_alone() {
        let (_dir, files) = store();
        files.append("2026-01-31", "whole").unwrap();
        let mut file = OpenOptions::new().append(true).open(files.path("2026-01-31")).unwrap();
        file.write_all(b"{\"half").unwrap();
        files.append("2026-01-31", "next").unwrap();
        assert_eq!(files.read("2026-01-31").unwrap(), b"whole\n{\"half\nnext\n");
    }

    #[test]
    fn eight_writers_lose_nothing() {
        let (_dir, files) = store();
        std::thread::scope(|scope| {
            for writer in 0..8 {
                let files = &files;
                scope.spawn(move || {
                    for n in 0..50 {
                        let line = format!("{writer}:{n}:{}", "x".repeat(5000));
                        files.append("2026-01-31", &line).unwrap();
                    }
                });
            }
        });
        let text = String::from_utf8(files.read("2026-01-31").unwrap()).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        assert!(lines.iter().all(|l| l.len() > 5000 && l.ends_with("xx")));
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 400);
    }

    #[test]
    fn a_place_that_is_a_file_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("file");
        fs::write(&place, "").unwrap();
        let files = Files::new(place);
        for error in [files.check().unwrap_err(), files.append("2026-01-31", "x").unwrap_err()] {
            assert!(error.to_string().contains("/file"), "{error}");
        }
        assert!(files.days().is_err());
    }
}
