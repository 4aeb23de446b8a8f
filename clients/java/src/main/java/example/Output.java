package example;

import java.io.IOException;
import java.io.InputStream;
import java.nio.file.Files;
import java.nio.file.Path;

/** A file that a process writes its output to, copied to standard output as it grows. */
final class Output implements AutoCloseable {
    private final Path file;
    private final Thread copier;
    private volatile boolean ended;

    Output() throws IOException {
        file = Files.createTempFile("example-", ".log");
        copier = new Thread(this::copy, "output");
        copier.setDaemon(true);
        copier.start();
    }

    /** How the daemon is told of it. */
    String uri() {
        return file.toUri().toString();
    }

    private void copy() {
        try (InputStream in = Files.newInputStream(file)) {
            boolean last;
            do {
                last = ended;
                in.transferTo(System.out);
                System.out.flush();
                Thread.sleep(20);
            } while (!last);
        } catch (IOException | InterruptedException e) {
            System.err.println("example: output: " + e.getMessage());
        }
    }

    /** Copies what is still to be copied, and removes the file. */
    @Override
    public void close() throws IOException, InterruptedException {
        ended = true;
        copier.join();
        Files.delete(file);
    }
}
