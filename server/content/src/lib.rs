//! Blobs by digest: resumable ingest, verified commit, ranged read
