//! The video of a job on its way to the output: what has come stays when the connection breaks.

use anyhow::{Context, ensure};
use fastvideo_proto::api::videos::Video;
use reqwest::StatusCode;
use reqwest::header::{ETAG, HeaderValue};

use super::retries::Retries;
use super::server::{Failure, Server};
use crate::client::output::Output;
use crate::client::progress::Progress;

/// A video that is being fetched.
pub(super) struct Download<'a> {
    id: &'a str,
    size: u64,
    output: &'a mut Output,
    /// Names the file whose beginning is in the output.
    tag: Option<HeaderValue>,
}

impl<'a> Download<'a> {
    /// # Errors
    /// Returns an error when the server does not say how large the video is, or the output cannot be written.
    pub(super) fn begin(video: &'a Video, output: &'a mut Output) -> anyhow::Result<Self> {
        output.begin_segment()?;
        let size = video.bytes;
        Ok(Self {
            id: &video.id,
            size: size.context("the server does not say how large the video is")?,
            output,
            tag: None,
        })
    }

    /// Fetches the video, over as many connections as it takes.
    ///
    /// # Errors
    /// Returns an error when the server refuses, the client gives up, or the output cannot be written.
    pub(super) async fn run(
        mut self,
        server: &Server,
        retries: &mut Retries<'_>,
        progress: &Progress,
    ) -> Result<(), Failure> {
        while let Err(failure) = self.run_connection(server, retries, progress).await {
            retries.pause(failure).await?;
        }
        self.output.commit_segment();
        Ok(())
    }

    /// Fetches what is missing over one connection.
    async fn run_connection(
        &mut self,
        server: &Server,
        retries: &mut Retries<'_>,
        progress: &Progress,
    ) -> Result<(), Failure> {
        if self.output.len() == self.size {
            return Ok(());
        }
        let rest = self.tag.as_ref().map(|tag| (self.output.len(), tag));
        let mut answer = server.content(self.id, rest).await?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            self.output.begin_segment()?;
            self.tag = answer.headers().get(ETAG).cloned();
        }
        while let Some(chunk) = server.chunk(&mut answer).await? {
            retries.succeeded();
            self.take(&chunk)?;
            progress.fetched(self.output.len(), self.size);
        }
        match self.output.len() == self.size {
            true => Ok(()),
            false => Err(Failure::Broke("it ended too early".to_owned())),
        }
    }

    fn take(&mut self, chunk: &[u8]) -> anyhow::Result<()> {
        let size = self.output.len() + chunk.len() as u64;
        ensure!(
            size <= self.size,
            "the server sends more than the {} bytes of the video",
            self.size
        );
        self.output.fragment(chunk)
    }
}
