//! Files in and out, as tar streams in data frames.
//!
//! Runs as root of the guest and sees what the guest sees; the host must not trust what it gets, nor
//! does it need this end to guard it.

use std::{
    fs,
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use agent::protocol::{Kind, MAX_DATA_BYTES};

use super::connection::{Reader, Writer};

/// Sends a file or directory under its own name.
pub fn send(path: &str, follow: bool, writer: &Writer) -> io::Result<()> {
    let path = absolute(path)?;
    let path = if follow {
        fs::canonicalize(&path)?
    } else {
        path
    };
    // Asked first: a refusal has to come before any data.
    let meta = fs::symlink_metadata(&path)?;
    let name = path.file_name().map_or_else(|| ".".into(), PathBuf::from);
    let output = BufWriter::with_capacity(MAX_DATA_BYTES, Frames(writer));
    let mut tar = tar::Builder::new(output);
    tar.follow_symlinks(false);
    if meta.is_dir() {
        tar.append_dir_all(&name, &path)?;
    } else {
        tar.append_path_with_name(&path, &name)?;
    }
    let mut output = tar.into_inner()?;
    output.flush()?;
    drop(output);
    writer.frame(Kind::Data, &[])
}

/// Unpacks what comes. Reads to the end of the stream in any case, so that the connection stays in step.
pub fn receive(directory: &str, reader: &mut Reader<'_>) -> io::Result<()> {
    let mut input = Stream {
        reader,
        rest: Vec::new(),
        taken: 0,
        ended: false,
    };
    let result = unpack(directory, &mut input);
    io::copy(&mut input, &mut io::sink())?;
    result
}

fn unpack(directory: &str, input: &mut Stream<'_, '_>) -> io::Result<()> {
    let directory = absolute(directory)?;
    if !fs::metadata(&directory)?.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let mut tar = tar::Archive::new(input);
    tar.set_preserve_permissions(true);
    tar.set_preserve_ownerships(true);
    tar.set_preserve_mtime(true);
    tar.set_overwrite(true);
    tar.unpack(directory)
}

fn absolute(path: &str) -> io::Result<PathBuf> {
    let path = Path::new(path);
    if !path.is_absolute() {
        let text = "the path must be absolute";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(path.to_owned())
}

/// Writes become data frames.
struct Frames<'a>(&'a Writer);

impl Write for Frames<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = &bytes[..bytes.len().min(MAX_DATA_BYTES)];
        // An empty frame would be the end.
        if !piece.is_empty() {
            self.0.frame(Kind::Data, piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Data frames become reads.
struct Stream<'a, 'b> {
    reader: &'a mut Reader<'b>,
    rest: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl Read for Stream<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.rest.len() {
            if self.ended {
                return Ok(0);
            }
            let frame = self.reader.frame();
            let frame = frame.filter(|frame| frame.kind == Kind::Data);
            let frame = frame.ok_or(io::ErrorKind::UnexpectedEof)?;
            self.ended = frame.payload.is_empty();
            self.rest = frame.payload;
            self.taken = 0;
        }
        let count = (&self.rest[self.taken..]).read(buffer)?;
        self.taken += count;
        Ok(count)
    }
}
