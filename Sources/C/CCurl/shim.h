// libcurl, imported only by HTTPClient. Its setters take variable arguments, which Swift cannot
// pass; these have one type each.
#pragma once
#include <curl/curl.h>

typedef size_t (*rk_curl_sink)(char *bytes, size_t size, size_t count, void *context);

static inline CURLcode rk_curl_set_text(CURL *handle, CURLoption option, const char *text) {
    return curl_easy_setopt(handle, option, text);
}
static inline CURLcode rk_curl_set_number(CURL *handle, CURLoption option, long number) {
    return curl_easy_setopt(handle, option, number);
}
static inline CURLcode rk_curl_set_size(CURL *handle, CURLoption option, curl_off_t size) {
    return curl_easy_setopt(handle, option, size);
}
static inline CURLcode rk_curl_set_pointer(CURL *handle, CURLoption option, const void *pointer) {
    return curl_easy_setopt(handle, option, pointer);
}
static inline CURLcode rk_curl_set_sink(CURL *handle, CURLoption option, rk_curl_sink function) {
    return curl_easy_setopt(handle, option, function);
}
static inline long rk_curl_status(CURL *handle) {
    long status = 0;
    curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
    return status;
}
// Bytes of the body that were sent, and that came.
static inline curl_off_t rk_curl_sent(CURL *handle) {
    curl_off_t bytes = 0;
    curl_easy_getinfo(handle, CURLINFO_SIZE_UPLOAD_T, &bytes);
    return bytes;
}
static inline curl_off_t rk_curl_received(CURL *handle) {
    curl_off_t bytes = 0;
    curl_easy_getinfo(handle, CURLINFO_SIZE_DOWNLOAD_T, &bytes);
    return bytes;
}
// Whether the one transfer of `multi` is done; then `*result` is how it ended.
static inline int rk_curl_is_done(CURLM *multi, CURLcode *result) {
    int left = 0;
    CURLMsg *message = curl_multi_info_read(multi, &left);
    if (message == NULL || message->msg != CURLMSG_DONE) return 0;
    *result = message->data.result;
    return 1;
}
