#!/bin/sh
# /cgi-bin/rows: the numbers of all orders.
printf 'Content-Type: text/plain\r\n\r\n'
exec mariadb --no-defaults --connect-timeout=2 -h db -u shop -p"$(cat /run/secrets/shop_db_password)" -N shop \
    -e 'select n from orders order by n' 2>&1
