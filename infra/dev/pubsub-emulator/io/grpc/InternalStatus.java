package io.grpc;

/**
 * Stands in for the class of the same name in Google's Pub/Sub emulator 0.8.20.
 *
 * <p>Its jar holds two versions of gRPC. The one that answers calls ends a cancelled call with {@code
 * asRuntimeException}, which this class of the other version lacks. The call then never ends: a subscriber that has
 * gone stays subscribed and swallows its share of the messages until their deadline passes, again and again. In front
 * of the jar on the class path, this file gives both versions what they call.
 */
public final class InternalStatus {
  public static final Metadata.Key<String> MESSAGE_KEY = Status.MESSAGE_KEY;
  public static final Metadata.Key<Status> CODE_KEY = Status.CODE_KEY;

  private InternalStatus() {}

  public static StatusRuntimeException asRuntimeExceptionWithoutStacktrace(Status status, Metadata trailers) {
    return new StatusRuntimeException(status, trailers);
  }

  public static StatusRuntimeException asRuntimeException(Status status, Metadata trailers, boolean stackTrace) {
    return new StatusRuntimeException(status, trailers);
  }
}
